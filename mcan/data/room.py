"""The command of a dataset room whose files are in the VQA layout: arguments, steps, table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mcan.arguments import positive
from mcan.data.json_items import file_on_disk
from mcan.data.preparation import (
    answer_vocabulary,
    carve,
    report,
    sources,
    token_vocabulary,
)
from mcan.data.prepared_writer import write_prepared
from mcan.data.vqa_layout import RawSplit, read_vqa
from mcan.errors import DataError
from mcan.text.answers import soft_targets
from mcan.text.vocabulary import Vocabulary

TRAIN, VAL = "train", "val"


@dataclass(frozen=True)
class Room:
    """What a dataset differs in; the rest are defaults of its command line.

    - `splits`: the files of each, as named in `raw/`, questions before annotations. A file in an
      archive is `archive.zip/name.json`; it is also found as `name.json` and `name.json.gz`;
    - `read`: makes a split of these files;
    - `every_answer`: all answers count for the vocabulary, not one per question.
    """

    name: str
    folder: Path
    splits: Mapping[str, tuple[str, ...]]
    read: Callable[..., RawSplit] = read_vqa
    min_answer_count: int | None = 9
    top_answers: int | None = None
    every_answer: bool = False
    carve_validation: float = 0.0


def prepare_room(room: Room, arguments: Sequence[str] | None = None) -> int:
    """Run the room's command."""
    options = room_parser(room).parse_args(arguments)
    splits = read_splits(room, options)
    return write_room(room, options, splits, room_answers(splits, options))


def room_parser(room: Room) -> argparse.ArgumentParser:
    """The arguments that every room takes."""
    parser = argparse.ArgumentParser(description=f"Prepare {room.name}: JSON -> prepared/.")
    raw, output = room.folder / "raw", room.folder / "prepared"
    parser.add_argument("--output", type=Path, default=output, help="folder to write")
    parser.add_argument("--force", action="store_true", help="replace the folder if it exists")
    given = parser.add_mutually_exclusive_group(required=not room.splits)
    if room.splits:
        parser.add_argument("--raw", type=Path, default=raw, help="folder of the official files")
        given.add_argument(
            "--splits",
            nargs="+",
            choices=tuple(room.splits),
            default=list(room.splits),
            metavar="SPLIT",
            help=f"official splits to prepare (all of {', '.join(room.splits)})",
        )
    given.add_argument(
        "--files",
        nargs="+",
        action="append",
        metavar=("SPLIT", "FILE"),
        help="a split of files of your own, questions before annotations; once per split",
    )
    words = parser.add_argument_group("vocabulary")
    words.add_argument(
        "--token-splits",
        nargs="+",
        default=[TRAIN],
        metavar="SPLIT",
        help="splits to take words of",
    )
    words.add_argument(
        "--answer-splits", nargs="+", default=[TRAIN], metavar="SPLIT", help="... and answers of"
    )
    words.add_argument(
        "--min-answer-count",
        type=positive,
        default=room.min_answer_count,
        metavar="N",
        help="keep answers that occur at least N times (%(default)s)",
    )
    words.add_argument(
        "--top-answers",
        type=positive,
        default=room.top_answers,
        metavar="K",
        help="keep the K most frequent of these (%(default)s)",
    )
    words.add_argument(
        "--count-answers",
        choices=("chosen", "every"),
        default="every" if room.every_answer else "chosen",
        help="count one answer per question or the answers of all people (%(default)s)",
    )
    carving = parser.add_argument_group("validation split, where none is given")
    carving.add_argument(
        "--carve-validation",
        type=_share,
        metavar="SHARE",
        help=f"share of the training images to take; 0 for none ({room.carve_validation})",
    )
    carving.add_argument("--seed", type=int, default=0, help="draws these images (%(default)s)")
    return parser


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0 and below 1")
    return share


def read_splits(room: Room, options: argparse.Namespace) -> dict[str, RawSplit]:
    """The splits asked for, with a validation split carved out where that is asked for."""
    splits = {name: room.read(*paths) for name, paths in _paths(room, options).items()}
    _check_id_types(splits)
    share = options.carve_validation
    if share and VAL in splits:
        raise DataError(f"--carve-validation {share}: there is a split '{VAL}' already")
    if share is None and VAL not in splits:
        share = room.carve_validation
    if share:
        if TRAIN not in splits:
            raise DataError(f"--carve-validation {share}: there is no split '{TRAIN}' to carve")
        train, validation = carve(splits[TRAIN], share, options.seed)
        splits = {**splits, TRAIN: train, VAL: validation}
    return splits


def _paths(room: Room, options: argparse.Namespace) -> dict[str, list[Path]]:
    if not options.files:
        return {
            name: [_find(options.raw, file) for file in room.splits[name]]
            for name in options.splits
        }
    paths: dict[str, list[Path]] = {}
    most = max((len(files) for files in room.splits.values()), default=2)
    for name, *files in options.files:
        if name in paths:
            raise DataError(f"--files {name}: the split is given twice")
        if not 1 <= len(files) <= most:
            raise DataError(f"--files {name}: expected 1 to {most} files, found {len(files)}")
        paths[name] = [Path(file) for file in files]
    return paths


def _find(raw: Path, name: str) -> Path:
    official = raw / name
    plain = raw / official.name
    for path in (plain, plain.with_name(f"{plain.name}.gz"), official):
        if file_on_disk(path).is_file():
            return path
    archive = f", nor {official.parent}" if official != plain else ""
    raise DataError(
        f"{plain}: there is no such file{archive}; the README of the room tells where it comes "
        "from, and --splits leaves a split out"
    )


def _check_id_types(splits: Mapping[str, RawSplit]) -> None:
    """Splits are trained on together and share image stores, so ids must be of one type."""
    (first, reference), *others = splits.items()
    for name, split in others:
        for kind in ("question_id", "image_id"):
            ours, theirs = getattr(reference.questions[0], kind), getattr(split.questions[0], kind)
            if type(ours) is not type(theirs):
                raise DataError(
                    f"{split.sources[0]}: '{kind}' of split '{name}' is {theirs!r} while that of "
                    f"split '{first}' is {ours!r}; ids must be all integers or all strings"
                )


def room_answers(splits: Mapping[str, RawSplit], options: argparse.Namespace) -> tuple[str, ...]:
    """The answer vocabulary asked for."""
    return answer_vocabulary(
        splits,
        options.answer_splits,
        min_count=options.min_answer_count,
        top_k=options.top_answers,
        every=options.count_answers == "every",
    )


def write_room(
    room: Room,
    options: argparse.Namespace,
    splits: Mapping[str, RawSplit],
    answers: tuple[str, ...],
) -> int:
    """Write the prepared folder and print its counts."""
    vocabulary = Vocabulary(token_vocabulary(splits, options.token_splits), answers)
    words_of, answers_of = ", ".join(options.token_splits), ", ".join(options.answer_splits)
    counts = write_prepared(
        options.output,
        {name: split.examples() for name, split in splits.items()},
        vocabulary,
        lambda raw: soft_targets(raw, vocabulary.answer_index),
        dataset=room.name,
        metric="vqa",
        sources=sources(splits),
        built_from=f"tokens: {words_of}; answers: {answers_of}",
        force=options.force,
    )
    print(
        f"{options.output}: {len(vocabulary.tokens):,} tokens from {words_of}; "
        f"{len(answers):,} answers from {answers_of}"
    )
    print(report(options.output, counts))
    return 0
