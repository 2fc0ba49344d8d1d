"""Writes prepared datasets: examples of any source become the one format of data/README.md."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import mcan
from mcan.data.hdf5 import Id, check_id, check_text, publishing, write_ids, write_strings
from mcan.data.prepared import read_meta
from mcan.data.split import FORMAT_VERSION
from mcan.errors import DataError
from mcan.files import saving
from mcan.progress import progress
from mcan.text.tokens import tokenise
from mcan.text.vocabulary import UNK, Vocabulary

TargetFunction = Callable[[Sequence[str]], Sequence[tuple[int, float]]]
Counts = dict[str, int]
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Example:
    """A question as its source has it; `answers` are the raw human ones, none in a test split."""

    question_id: Id
    image_id: Id
    question: str
    answers: Sequence[str] = ()
    answer_type: str = ""
    question_type: str = ""


def write_prepared(
    folder: str | Path,
    splits: Mapping[str, Iterable[Example]],
    vocabulary: Vocabulary,
    targets: TargetFunction,
    *,
    dataset: str,
    metric: str,
    sources: Mapping[str, str],
    built_from: str = "",
    also: Callable[[Path], None] | None = None,
    force: bool = False,
) -> dict[str, Counts]:
    """Write a prepared folder, complete or not at all, and return the counts of each split.

    - `targets`: raw human answers -> (answer index, score in (0, 1]) pairs;
    - `metric`: the metric that the dataset is scored by; `sources`: file name -> SHA-256;
    - `built_from`: what the vocabulary was built from, for the record;
    - `also`: writes further files (images) into the folder before it appears.

    A split is held in memory while it is written, about 0.4 kB per question. An existing folder is
    replaced only with `force`, and only if it holds nothing but files of a prepared dataset.

    Raises `DataError`, which names the split and question, for an example that cannot be stored.
    """
    folder = Path(folder)
    _check_replaceable(folder, force)
    for name in splits:
        if not _SPLIT_NAME.fullmatch(name):
            raise DataError(f"{folder}: split name {name!r} is not letters, digits, '.', '_', '-'")
    counts = {}
    with publishing(folder) as temporary:
        with saving(folder):
            temporary.mkdir(parents=True)
        for name, examples in splits.items():
            columns = _Columns(folder / f"{name}.h5", vocabulary, targets)
            for example in progress(examples, desc=name, unit=" questions", delay=1):
                columns.add(example)
            with saving(folder), h5py.File(temporary / f"{name}.h5", "x") as file:
                columns.write(file)
            counts[name] = columns.counts()
        if also is not None:
            also(temporary)
        with saving(folder):
            (temporary / "vocabulary.json").write_text(vocabulary.to_json(), encoding="utf-8")
            files = sorted([*(file.name for file in temporary.iterdir()), "meta.json"])
            meta = {
                "format_version": FORMAT_VERSION,
                "dataset": dataset,
                "metric": metric,
                "mcan": mcan.__version__,
                "vocabulary": {
                    "tokens": len(vocabulary.tokens),
                    "answers": len(vocabulary.answers),
                    "built_from": built_from,
                },
                "splits": counts,
                "sources": dict(sources),
                "files": files,
            }
            (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    return counts


def _check_replaceable(folder: Path, force: bool) -> None:
    if folder.is_dir():
        found = {file.name for file in folder.iterdir()}
        if not found:
            return
        if not force:
            raise DataError(f"{folder}: already exists; replace it with --force")
        foreign = sorted(found - set(read_meta(folder)["files"]))
        if foreign:
            raise DataError(
                f"{folder}: holds {', '.join(foreign)}, which prepare.py did not write; move it "
                "elsewhere before replacing the folder"
            )
    elif folder.exists():
        raise DataError(f"{folder}: is a file, expected a folder or nothing")


class _Numbering:
    """Numbers different values in the order of their first appearance."""

    def __init__(self) -> None:
        self.values: dict[Any, int] = {}
        self.codes = array("i")

    def add(self, value: Any) -> None:
        self.codes.append(self.values.setdefault(value, len(self.values)))


class _Columns:
    """The columns of one split, filled example by example; `path` is for messages."""

    def __init__(self, path: Path, vocabulary: Vocabulary, targets: TargetFunction) -> None:
        self._path = path
        self._vocabulary = vocabulary
        self._targets = targets
        self._ids: dict[Id, None] = {}
        self._image_id: Id | None = None
        self._question_id: Id | None = None
        self._questions: list[str] = []
        self._images = _Numbering()
        self._answers = _Numbering()
        self._types = {"answer_type": _Numbering(), "question_type": _Numbering()}
        self._numbers = {"tokens": array("i"), "target_index": array("i")}
        self._scores = array("f")
        self._offsets = {
            name: array("q", [0])
            for name in ("token_offsets", "target_offsets", "human_answer_offsets")
        }

    def add(self, example: Example) -> None:
        question_id = check_id(example.question_id, "question id", self._path, self._question_id)
        if question_id in self._ids:
            raise DataError(f"{self._path}: question id {question_id!r} occurs more than once")
        where = f"of question {question_id!r}"
        image_id = check_id(example.image_id, f"image id {where}", self._path, self._image_id)
        types = {"answer_type": example.answer_type, "question_type": example.question_type}
        for text in (example.question, *example.answers, *types.values()):
            check_text(text, f"a text {where}", self._path)
        self._ids[question_id] = None
        self._question_id, self._image_id = question_id, image_id
        self._questions.append(example.question)
        self._images.add(image_id)
        for name, value in types.items():
            self._types[name].add(value)
        self._numbers["tokens"].extend(self._vocabulary.encode(tokenise(example.question)))
        for answer in example.answers:
            self._answers.add(answer)
        for index, score in self._targets(example.answers):
            if not (0 <= index < len(self._vocabulary.answers) and 0 < score <= 1):
                raise DataError(
                    f"{self._path}: the target {where} is answer {index} with score {score}, "
                    f"expected 0 to {len(self._vocabulary.answers) - 1} and (0, 1]"
                )
            self._numbers["target_index"].append(index)
            self._scores.append(score)
        self._offsets["token_offsets"].append(len(self._numbers["tokens"]))
        self._offsets["target_offsets"].append(len(self._scores))
        self._offsets["human_answer_offsets"].append(len(self._answers.codes))

    def write(self, file: h5py.File) -> None:
        if not self._questions:
            raise DataError(f"{self._path}: the split has no question")
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["vocabulary"] = self._vocabulary.digest
        write_ids(file, "question_ids", list(self._ids))
        write_strings(file, "questions", self._questions)
        write_ids(file, "image_ids", list(self._images.values))
        write_strings(file, "answer_strings", list(self._answers.values))
        file["image_index"] = np.array(self._images.codes, np.int32)
        file["human_answers"] = np.array(self._answers.codes, np.int32)
        file["target_score"] = np.array(self._scores, np.float32)
        for name, numbers in self._numbers.items():
            file[name] = np.array(numbers, np.int32)
        for name, offsets in self._offsets.items():
            file[name] = np.array(offsets, np.int64)
        for name, types in self._types.items():
            file[name] = np.array(types.codes, np.int32)
            write_strings(file, f"{name}_names", list(types.values))

    def counts(self) -> Counts:
        offsets = np.array(self._offsets["target_offsets"])
        return {
            "questions": len(self._questions),
            "images": len(self._images.values),
            "words": len(self._numbers["tokens"]),
            "unknown_words": self._numbers["tokens"].count(UNK),
            "without_target": int((np.diff(offsets) == 0).sum()),
        }
