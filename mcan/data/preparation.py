"""From questions and annotations to a prepared dataset: vocabularies, validation split, counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from mcan.data.json_items import file_on_disk, file_sha256
from mcan.data.prepared import Prepared
from mcan.data.prepared_writer import Counts
from mcan.data.split import Split
from mcan.data.vqa_layout import RawSplit
from mcan.errors import DataError
from mcan.text.answers import normalise_answer
from mcan.text.vocabulary import build_answers, build_tokens

_T = TypeVar("_T")


def token_vocabulary(splits: Mapping[str, RawSplit], names: Sequence[str]) -> tuple[str, ...]:
    """The words of the splits `names`, one after the other, in the order of first appearance."""
    chosen = _choose(splits, names)
    return build_tokens(question.text for split in chosen for question in split.questions)


def answer_vocabulary(
    splits: Mapping[str, RawSplit],
    names: Sequence[str],
    *,
    min_count: int | None,
    top_k: int | None,
    every: bool,
) -> tuple[str, ...]:
    """The normalised answers that are frequent in the splits `names`, in order of first appearance.

    Counted is the chosen answer of each question or, with `every`, each answer of each person.
    Raises `DataError` for a split that is not there or has no answers, and if no answer is left.
    """
    chosen = _choose(splits, names)
    for name, split in zip(names, chosen, strict=True):
        if not split.annotations:
            raise DataError(f"split '{name}' has no annotations to build answers from")
    answers = build_answers(_counted(chosen, every), min_count, top_k)
    if not answers:
        raise DataError(
            f"no answer occurs {min_count} times in {', '.join(names)}; lower --min-answer-count"
        )
    return answers


def _counted(splits: Sequence[RawSplit], every: bool) -> Iterator[str]:
    for split in splits:
        for annotation in split.annotations.values():
            yield from map(normalise_answer, annotation.answers if every else (annotation.chosen,))


def _choose(splits: Mapping[str, _T], names: Sequence[str]) -> list[_T]:
    for name in names:
        if name not in splits:
            raise DataError(
                f"a vocabulary is asked from split '{name}', but there is {', '.join(splits)}; "
                "choose with --token-splits and --answer-splits"
            )
    return [splits[name] for name in names]


def carve(split: RawSplit, share: float, seed: int) -> tuple[RawSplit, RawSplit]:
    """Split off the questions of a `share` of the images, at least one; (the rest, these).

    The images are drawn by `seed`: the same files and seed give the same result.
    Raises `DataError` where there is only one image.
    """
    images = list(split.images)
    if len(images) < 2:
        raise DataError("a validation split needs questions about at least two images")
    count = min(max(1, round(share * len(images))), len(images) - 1)
    drawn = np.random.default_rng(seed).permutation(len(images))[:count].tolist()
    taken = {images[number] for number in drawn}

    def part(inside: bool) -> RawSplit:
        return RawSplit(
            [question for question in split.questions if (question.image_id in taken) == inside],
            {
                question_id: annotation
                for question_id, annotation in split.annotations.items()
                if (annotation.image_id in taken) == inside
            },
            split.sources,
        )

    return part(False), part(True)


def sources(splits: Mapping[str, RawSplit]) -> dict[str, str]:
    """SHA-256 of every file read, by its name; by its whole path where names clash."""
    paths = dict.fromkeys(file_on_disk(path) for split in splits.values() for path in split.sources)
    names = [path.name for path in paths]
    return {
        path.name if names.count(path.name) == 1 else str(path): file_sha256(path) for path in paths
    }


def report(folder: Path, counts: Mapping[str, Counts]) -> str:
    """A table of the counts of each split and how much of it the answer vocabulary covers.

    `bound` is the mean of the best score in each soft target: what a model reaches at most.
    """
    prepared = Prepared.open(folder)
    columns: list[tuple[str, Callable[[Counts, Split], str]]] = [
        ("questions", lambda count, _: f"{count['questions']:,}"),
        ("images", lambda count, _: f"{count['images']:,}"),
        ("words", lambda count, _: f"{count['words']:,}"),
        ("unknown", lambda count, _: f"{count['unknown_words']:,}"),
        ("with target", _with_target),
        ("bound", _bound),
    ]
    rows = [["split", *(name for name, _ in columns)]]
    for name, count in counts.items():
        split = prepared.split(name)
        rows.append([name, *(cell(count, split) for _, cell in columns)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    )


def _with_target(count: Counts, split: Split) -> str:
    if not _annotated(split):
        return "-"
    return f"{100 * (1 - count['without_target'] / count['questions']):.2f} %"


def _bound(_: Counts, split: Split) -> str:
    if not _annotated(split):
        return "-"
    scores, starts = split.target_scores.values, split.target_scores.offsets
    filled = np.flatnonzero(np.diff(starts))
    best = np.maximum.reduceat(scores, starts[filled]) if len(filled) else np.zeros(1)
    return f"{100 * best.sum(dtype=np.float64) / len(split):.2f} %"


def _annotated(split: Split) -> bool:
    return len(split.human_answers.codes.values) > 0
