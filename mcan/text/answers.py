"""Answers as the VQA organisers normalise them.

The rules follow the published evaluation code to the letter, oddities included, because numbers are
compared with numbers computed by it.
"""

from __future__ import annotations

import re
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
# wrong:right. The published table also lists capitalised words, which lower-cased text never
# contains, and words that map to themselves; neither changes an answer.
_CONTRACTIONS = """
'ow'sat:'ow's'at 'ows'at:'ow's'at aint:ain't arent:aren't cant:can't couldn'tve:couldn't've
couldnt:couldn't couldnt've:couldn't've couldve:could've didnt:didn't doesnt:doesn't dont:don't
hadn'tve:hadn't've hadnt:hadn't hadnt've:hadn't've hasnt:hasn't havent:haven't he'dve:he'd've
hed:he'd hed've:he'd've hes:he's howd:how'd howll:how'll hows:how's isnt:isn't it'dve:it'd've
itd:it'd itd've:it'd've itll:it'll maam:ma'am mightn'tve:mightn't've mightnt:mightn't
mightnt've:mightn't've mightve:might've mustnt:mustn't mustve:must've neednt:needn't
notve:not've oclock:o'clock oughtnt:oughtn't ow's'at:'ow's'at shant:shan't she'dve:she'd've
shed've:she'd've shouldn'tve:shouldn't've shouldnt:shouldn't shouldnt've:shouldn't've
shouldve:should've somebody'd:somebodyd somebody'dve:somebody'd've somebodyd've:somebody'd've
somebodyll:somebody'll somebodys:somebody's someone'dve:someone'd've someoned:someone'd
someoned've:someone'd've someonell:someone'll someones:someone's something'dve:something'd've
somethingd:something'd somethingd've:something'd've somethingll:something'll thats:that's
there'dve:there'd've thered:there'd thered've:there'd've therere:there're theres:there's
they'dve:they'd've theyd:they'd theyd've:they'd've theyll:they'll theyre:they're theyve:they've
twas:'twas wasnt:wasn't we'dve:we'd've wed've:we'd've werent:weren't weve:we've whatll:what'll
whatre:what're whats:what's whatve:what've whens:when's whered:where'd wheres:where's
whereve:where've who'dve:who'd've whod:who'd whod've:who'd've wholl:who'll whos:who's
whove:who've whyll:why'll whyre:why're whys:why's wont:won't wouldn'tve:wouldn't've
wouldnt:wouldn't wouldnt've:wouldn't've wouldve:would've y'all'dve:y'all'd've
y'alld've:y'all'd've y'allll:y'all'll yall:y'all yall'd've:y'all'd've yall'll:y'all'll
you'dve:you'd've youd:you'd youd've:you'd've youll:you'll youre:you're youve:you've
"""
CONTRACTIONS = dict(pair.split(":") for pair in _CONTRACTIONS.split())

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The organisers' code passes a flag whose value is 32 where the number of replacements belongs.
_MOST_PERIODS = 32
# VQA v2 has 6.6 million human answers, nearly all of them repetitions.
_CACHED = 1 << 17


def strip_space(text: str) -> str:
    """Without white space at the ends; line breaks and tabs become spaces."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(_CACHED)
def strip_punctuation(text: str) -> str:
    """The first step: delete punctuation, or replace it by a space where it joins two words.

    A mark is deleted everywhere if it touches a space anywhere in `text`; all marks are deleted if
    `text` has a comma between two digits. Then up to 32 periods without a digit after them go.
    """
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in PUNCTUATION:
        if mark in text:
            deleted = in_number or f"{mark} " in text or f" {mark}" in text
            stripped = stripped.replace(mark, "" if deleted else " ")
    return _PERIOD.sub("", stripped, count=_MOST_PERIODS)


@lru_cache(_CACHED)
def normalise_answer(text: str) -> str:
    """Space, punctuation; then lower case, number words to digits, articles, contractions.

    Vocabularies and targets hold answers in this form. It is the empty string for "a".
    """
    stripped = strip_punctuation(strip_space(text))
    words = (NUMBER_WORDS.get(word, word) for word in stripped.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
