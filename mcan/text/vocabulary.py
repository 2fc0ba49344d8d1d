"""Questions to words, and the vocabularies of words and answers."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mcan.errors import DataError

PAD, UNK = 0, 1
# The authors' names. Upper case, so that no word of the tokeniser is equal to them.
SPECIAL_TOKENS = ("PAD", "UNK")
# One pass: deleted characters map to None, the joiners to a space. After the authors' come the
# typographic forms of their marks, and those of scripts that write no spaces beside them.
_TOKEN_RULES = str.maketrans(
    "-/，、。！？：；（）「」『』《》・", " " * 18, ".,'!?\"()*#:;" + "‘’‚‛ʼ′“”„‟″«»‹›…¿¡؟،"
)
_ENTITY = re.compile(r"&#?\w+;")
# Han characters and both kana: nothing separates their words. Korean has spaces.
_CJK = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]"
)


def tokenise(question: str) -> list[str]:
    """The lower-cased words of `question`; may be empty.

    English gives the tokens of the authors' code. HTML entities are unescaped, and CJK characters
    are tokens of their own.
    """
    if "&" in question:
        question = _ENTITY.sub(lambda found: html.unescape(found[0]), question)
    text = question.lower().translate(_TOKEN_RULES)
    return (text if text.isascii() else _CJK.sub(r" \g<0> ", text)).split()


@dataclass(frozen=True)
class Vocabulary:
    """`tokens` starts with PAD (0) and UNK (1), then words; `answers` are the model's classes."""

    tokens: tuple[str, ...]
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        for entries in (self.tokens, self.answers):
            if not all(isinstance(entry, str) for entry in entries):
                raise ValueError("an entry is not a string")
            "".join(entries).encode()  # a lone surrogate is a ValueError
            if len(set(entries)) < len(entries):
                raise ValueError("an entry is repeated")
        if self.tokens[:2] != SPECIAL_TOKENS:
            raise ValueError(f"tokens start with {self.tokens[:2]}, expected {SPECIAL_TOKENS}")

    @property
    def words(self) -> tuple[str, ...]:
        """The tokens without PAD and UNK."""
        return self.tokens[len(SPECIAL_TOKENS) :]

    @cached_property
    def word_index(self) -> Mapping[str, int]:
        return {word: index for index, word in enumerate(self.words, len(SPECIAL_TOKENS))}

    @cached_property
    def answer_index(self) -> Mapping[str, int]:
        return {answer: index for index, answer in enumerate(self.answers)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal."""
        return hashlib.sha256(json.dumps([self.tokens, self.answers]).encode()).hexdigest()

    def encode(self, words: Iterable[str]) -> list[int]:
        """The index of each word, UNK if it is unknown; a single UNK if there are no words."""
        return [self.word_index.get(word, UNK) for word in words] or [UNK]

    def to_json(self) -> str:
        """An object with the lists `tokens` and `answers`, one entry a line."""
        return json.dumps({"tokens": self.tokens, "answers": self.answers}, indent=0) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Vocabulary:
        """The vocabulary that `to_json` wrote in the file `where`."""
        try:
            content = json.loads(text)
            return cls(tuple(content["tokens"]), tuple(content["answers"]))
        except (ValueError, RecursionError, LookupError, TypeError) as error:
            raise DataError(
                f"{where}: not a JSON object with the lists 'tokens' and 'answers' ({error})"
            ) from None

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        return cls.from_json(path.read_bytes(), str(path))


def unknown_words_warning(
    where: object, unknown: int, words: int, given: bool = False
) -> str | None:
    """What is wrong if more than a tenth of the `words` of a split are `unknown`, or None.

    A vocabulary that was `given`, by a run, cannot take its words from other splits.
    """
    if unknown <= words / 10:
        return None
    advice = "; prepare.py --token-splits chooses the splits with the words"
    return (
        f"{where}: {unknown:,} of {words:,} words ({unknown / words:.0%}) are unknown to the "
        "vocabulary: another language or other questions than those it was made of, or words "
        f"that no spaces separate{'' if given else advice}"
    )


def build_tokens(questions: Iterable[str]) -> tuple[str, ...]:
    """PAD, UNK and the words of `questions`, in order of first appearance."""
    words = (word for question in questions for word in tokenise(question))
    return SPECIAL_TOKENS + tuple(dict.fromkeys(words))
