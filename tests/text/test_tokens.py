import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcan.text.tokens import tokenise
from mcan.text.vocabulary import SPECIAL_TOKENS


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("", []),
        (" ?! ", []),
        ("-/-", []),
        ("What's on the DOG's head?", ["whats", "on", "the", "dogs", "head"]),
        ("Is it left-to-right/up?", ["is", "it", "left", "to", "right", "up"]),
        ('(#1) says: "a;b*c."', ["1", "says", "abc"]),
        ("don’t <stop> & go_on", ["don’t", "<stop>", "&", "go_on"]),
        ("a\u00a0b\u2003c\n", ["a", "b", "c"]),
        ("ÀÉ ß", ["àé", "ß"]),
    ],
)
def test_rules(question: str, words: list[str]) -> None:
    assert tokenise(question) == words


@given(st.text(alphabet=" \t.,'!?\"()*#:;-/<>PADUNKpadunké1", max_size=30))
def test_against_successive_substitution(question: str) -> None:
    kept = re.sub(r"[.,'!?\"()*#:;]", "", question.lower())
    words = re.sub(r"[-/]", " ", kept).split()
    assert tokenise(question) == words
    assert not set(words) & set(SPECIAL_TOKENS)
