"""Small prepared folders to read back and to damage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcan.evaluation.metrics import soft_score
from mcan.preparation.questions import Example
from mcan.preparation.recipe import write_prepared
from mcan.text.answers import normalise_answer
from mcan.text.vocabulary import Vocabulary, build_tokens

QUESTIONS = [
    ("What color is the dog?", ["brown"] * 4 + ["black"] * 6, "other", "what color"),
    ("Is it raining?", ["yes"] * 10, "yes/no", "is it"),
    ("How many zebras?", ["2"] * 9 + ["3"], "number", "how many"),
    ("???", ["unanswerable"] * 10, "other", ""),
    ("Wie heißt das Tier – 犬?", ["Hund"] * 10, "other", "wie"),
]


def make_examples(
    count: int, image_ids: list[Any], first: int = 0, text_ids: bool = False
) -> list[Example]:
    examples = []
    for number in range(first, first + count):
        question, answers, answer_type, question_type = QUESTIONS[number % len(QUESTIONS)]
        examples.append(
            Example(
                f"q{number}" if text_ids else number * 7,
                image_ids[number * 5 % len(image_ids)],
                question,
                answers,
                answer_type,
                question_type,
            )
        )
    return examples


VOCABULARY = Vocabulary(
    build_tokens(["what color is the dog", "is it raining", "how many"]),
    ("yes", "brown", "black", "2", "3"),
)


def targets(answers: Sequence[str]) -> list[tuple[int, float]]:
    """The soft target of one question, answer by answer."""
    counts = Counter(map(normalise_answer, answers))
    return [
        (VOCABULARY.answers.index(answer), soft_score(count, len(answers)))
        for answer, count in counts.items()
        if answer in VOCABULARY.answers
    ]


def write_folder(folder: Path, splits: dict[str, list[Example]], **options: Any) -> Any:
    return write_prepared(
        folder,
        splits,
        VOCABULARY,
        dataset="toy",
        metric="vqa",
        sources={"toy.json": "0" * 64},
        **options,
    )
