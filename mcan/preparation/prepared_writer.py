"""Writes prepared datasets: the examples of any source in the format of data/README.md."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

import mcan
from mcan.console import progress
from mcan.data.arrays import RaggedArray, RaggedBuilder, Text, ids_to_array
from mcan.data.prepared import FORMAT_VERSION, HumanAnswers, encode_questions, meta_text
from mcan.errors import DataError, shorten
from mcan.evaluation.metrics import METRICS, upper_bound
from mcan.files import saving, sha256_of, sync
from mcan.preparation.questions import Example, RawSplit
from mcan.text.answers import normalise_answer
from mcan.text.vocabulary import UNK, Vocabulary

Counts = dict[str, Any]


def write_prepared(
    folder: str | Path,
    splits: Mapping[str, RawSplit | Iterable[Example]],
    vocabulary: Vocabulary,
    *,
    dataset: str,
    metric: str,
    sources: Mapping[str, str],
    command: str | None = None,
    vocabulary_from: str | None = None,
    extra_files: Callable[[Path], object] | None = None,
    force: bool = False,
) -> dict[str, Counts]:
    """Write a prepared folder, complete or not at all, and return the counts of each split.

    - `metric`: the metric that the dataset is scored by; its credit is the soft target;
    - `sources`: file name -> SHA-256;
    - `command`: the command line that makes the folder, for error messages;
    - `vocabulary_from`: the checkpoint that the vocabulary is of, recorded;
    - `extra_files`: writes further files (images) into the folder before it appears.

    Equal input gives equal bytes. An existing folder is replaced only with `force`, and only if it
    contains nothing but files of a prepared dataset. Raises `DataError`, which names the split and
    the question, for an example that cannot be stored.
    """
    folder = Path(folder)
    _check_replaceable(folder, force)
    for name in splits:
        if not name or Path(name).name != name:
            raise DataError(f"{folder}: split name {name!r} cannot be the name of a file")
    counts = {}
    with _replacing(folder) as temporary:
        for name, content in splits.items():
            if not isinstance(content, RawSplit):
                examples = progress(content, desc=name, unit=" questions", delay=1)
                content = RawSplit.collect(examples, folder / f"{name}.h5")
            arrays = _arrays(content, vocabulary, metric)
            counts[name] = _counts(arrays, content, vocabulary, metric)
            # Aligned, so that the arrays can be used as they are mapped.
            path = temporary / f"{name}.h5"
            with h5py.File(path, "x", alignment_threshold=1, alignment_interval=64) as file:
                file.attrs["format_version"] = FORMAT_VERSION
                for key, values in arrays.items():
                    file[key] = values
        if extra_files is not None:
            extra_files(temporary)
        (temporary / "vocabulary.json").write_text(vocabulary.to_json(), encoding="utf-8")
        meta = {
            "format_version": FORMAT_VERSION,
            "dataset": dataset,
            "metric": metric,
            "mcan": mcan.__version__,
            **({"command": command} if command else {}),
            "vocabulary": {
                "tokens": len(vocabulary.tokens),
                "answers": len(vocabulary.answers),
                **({"from": vocabulary_from} if vocabulary_from else {}),
            },
            "splits": counts,
            "sources": dict(sources),
            "files": {file.name: sha256_of(file) for file in sorted(temporary.iterdir())},
        }
        (temporary / "meta.json").write_text(meta_text(meta))
    return counts


def _check_replaceable(folder: Path, force: bool) -> None:
    with saving(folder):
        found = {file.name for file in folder.iterdir()} if folder.exists() else set()
    if not found:
        return
    if not force:
        raise DataError(f"{folder}: already exists; replace it with --force")
    written = {"meta.json"}
    # Also a folder with damaged splits, or of an earlier format version, can be replaced.
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        written.update(json.loads((folder / "meta.json").read_bytes())["files"])
    if foreign := sorted(found - written):
        raise DataError(
            f"{folder}: contains {shorten(foreign)}, which prepare.py did not write; move it "
            "elsewhere before replacing the folder"
        )


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield a new folder, which takes the place of `folder` unless an exception is raised."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        with saving(folder):
            temporary.mkdir(parents=True)
            yield temporary
            for file in (*temporary.iterdir(), temporary):
                sync(file)
            if folder.is_dir():
                folder.rename(old)
            temporary.rename(folder)
            sync(folder.parent)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _arrays(split: RawSplit, vocabulary: Vocabulary, metric: str) -> dict[str, NDArray[Any]]:
    """The datasets of a split's file, in their order."""
    tokens = encode_questions(split.questions, vocabulary)
    targets, scores = _targets(split.answers, vocabulary, metric)
    return {
        "question_ids": split.question_ids,
        **_text("questions", split.questions),
        "tokens": tokens.values,
        "token_offsets": tokens.offsets,
        "image_ids": ids_to_array(split.images.names),
        "image_index": split.images.codes,
        "target_index": targets.values,
        "target_score": scores.values,
        "target_offsets": targets.offsets,
        **_text("answer_strings", split.answers.text),
        "human_answers": split.answers.codes.values,
        "human_answer_offsets": split.answers.codes.offsets,
        "answer_type": split.answer_types.codes,
        **_text("answer_type_names", Text.of(split.answer_types.names)),
        "question_type": split.question_types.codes,
        **_text("question_type_names", Text.of(split.question_types.names)),
    }


def _text(name: str, text: Text) -> dict[str, NDArray[Any]]:
    return {name: text.values, f"{name}_offsets": text.offsets}


def _targets(
    answers: HumanAnswers, vocabulary: Vocabulary, metric: str
) -> tuple[RaggedArray, RaggedArray]:
    """The sparse soft target of each question: answers, and their scores in (0, 1].

    An answer of the vocabulary scores the metric's credit for the annotators who gave it, by its
    normalised form; they are in order of first appearance.
    """
    rule = METRICS[metric]
    classes = {normalise_answer(text): index for text, index in vocabulary.answer_index.items()}
    answer_of = [classes.get(normalise_answer(text)) for text in answers.strings]
    targets, scores = RaggedBuilder("i"), RaggedBuilder("f")
    for codes in answers.codes:
        counts = Counter(answer_of[code] for code in codes.tolist())
        counts.pop(None, None)
        targets.append(counts)
        scores.append(rule.credit(count, len(codes)) for count in counts.values())
    return targets.build(), scores.build()


def _counts(
    arrays: Mapping[str, NDArray[Any]], split: RawSplit, vocabulary: Vocabulary, metric: str
) -> Counts:
    """The counts of a split; `bound` is the metric's mean with the best answers, None without.

    `bound_normalised` is that of `vqa_normalised`.
    """
    bounds: list[float | None] = [None, None]
    if split.answers.complete:
        bounds = [
            float(upper_bound(name, split.answers, vocabulary.answers).mean())
            for name in (metric, "vqa_normalised")
        ]
    return {
        "questions": len(split),
        "images": len(split.images.names),
        "words": len(arrays["tokens"]),
        "unknown_words": int((arrays["tokens"] == UNK).sum()),
        "without_target": int((np.diff(arrays["target_offsets"]) == 0).sum()),
        "bound": bounds[0],
        "bound_normalised": bounds[1],
    }
