"""The words of the questions and the answers to choose from, each with its number."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mcan.errors import DataError
from mcan.text.tokens import tokenise

PAD, UNK = 0, 1
# Upper case, which no word of the tokeniser is in; the authors' names.
SPECIAL_TOKENS = ("PAD", "UNK")


@dataclass(frozen=True)
class Vocabulary:
    """`tokens` starts with PAD (0) and UNK (1), then words; `answers` are the classes of the model.

    Raises `ValueError` for an entry that is no string or a repetition, or misplaced PAD and UNK.
    """

    tokens: tuple[str, ...]
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_entries("tokens", self.tokens)
        _check_entries("answers", self.answers)
        if self.tokens[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            found = list(self.tokens[: len(SPECIAL_TOKENS)])
            raise ValueError(f"tokens starts with {found}, expected {list(SPECIAL_TOKENS)}")

    @property
    def words(self) -> tuple[str, ...]:
        """The tokens that are words, in the order of their numbers."""
        return self.tokens[len(SPECIAL_TOKENS) :]

    @cached_property
    def _word_index(self) -> Mapping[str, int]:
        return {word: number for number, word in enumerate(self.words, len(SPECIAL_TOKENS))}

    @cached_property
    def answer_index(self) -> Mapping[str, int]:
        """The number of each answer."""
        return {answer: number for number, answer in enumerate(self.answers)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal: equal for equal vocabularies only."""
        return hashlib.sha256(json.dumps([self.tokens, self.answers]).encode()).hexdigest()

    def encode(self, words: Iterable[str]) -> list[int]:
        """The number of each word; UNK for an unknown word, one UNK where there is no word."""
        return [self._word_index.get(word, UNK) for word in words] or [UNK]

    def to_json(self) -> str:
        """An object with the lists `tokens` and `answers`, one entry a line."""
        return json.dumps({"tokens": self.tokens, "answers": self.answers}, indent=0) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Vocabulary:
        """The vocabulary that `to_json` wrote; further keys are ignored.

        Raises `DataError`, which names the file `where`, for anything else.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error})") from None
        if not isinstance(content, dict):
            raise DataError(f"{where}: expected an object with the lists 'tokens' and 'answers'")
        lists: dict[str, tuple[Any, ...]] = {}
        for key in ("tokens", "answers"):
            if not isinstance(content.get(key), list):
                raise DataError(f"{where}: '{key}' is missing or not a list")
            lists[key] = tuple(content[key])
        try:
            return cls(**lists)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """The vocabulary in the file `path`; raises `DataError` where there is none."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path}: cannot read the vocabulary ({error.strerror})") from None
        except UnicodeDecodeError:
            raise DataError(f"{path}: not a vocabulary (not UTF-8 text)") from None
        return cls.from_json(text, str(path))


def _check_entries(name: str, entries: tuple[Any, ...]) -> None:
    seen: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise ValueError(f"{name}[{number}] is {entry!r}, expected a string")
        if entry in seen:
            raise ValueError(f"{name}[{number}] repeats {entry!r} of {name}[{seen[entry]}]")
        seen[entry] = number


def build_tokens(questions: Iterable[str]) -> tuple[str, ...]:
    """PAD, UNK and the words of `questions`, in the order of their first appearance."""
    words = (word for question in questions for word in tokenise(question))
    return SPECIAL_TOKENS + tuple(dict.fromkeys(words))


def build_answers(
    answers: Iterable[str], min_count: int | None = None, top_k: int | None = None
) -> tuple[str, ...]:
    """The answers that occur at least `min_count` times, the `top_k` most frequent of them.

    `answers` holds one (normalised) answer per question. The result is in the order of first
    appearance, which also decides between equally frequent answers. VQA v2: `min_count=9`.
    """
    counts = Counter(answers)
    kept = [answer for answer, count in counts.items() if count >= (min_count or 1)]
    if top_k is not None:
        best = set(sorted(kept, key=counts.__getitem__, reverse=True)[:top_k])
        kept = [answer for answer in kept if answer in best]
    return tuple(kept)
