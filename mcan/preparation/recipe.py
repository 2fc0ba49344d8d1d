"""Prepared folders, in the format of data/README.md, and the command that writes them.

The `prepare.py` of a dataset in the layout of VQA is a `DatasetRecipe`. One with more steps calls
the methods of its recipe itself; one that reads in its own way calls `write_dataset`.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

import mcan
from mcan.console import DefaultsInHelp, align, message, natural, positive, progress
from mcan.data.arrays import Text, ids_to_array
from mcan.data.integrity import meta_text
from mcan.data.prepared import FORMAT_VERSION, encode_questions
from mcan.errors import DataError, plural, shorten
from mcan.evaluation.metrics import METRICS, upper_bound
from mcan.files import (
    file_on_disk,
    for_library,
    lock_file,
    parse_json,
    remove_folder,
    saving,
    sha256_of,
    sync,
)
from mcan.preparation.names import ID_HELP, ID_RULES, ImageIds, read_pairs
from mcan.preparation.questions import (
    NAMES,
    OTHER_ANSWER,
    Example,
    RaggedBuilder,
    RawSplit,
    read_files,
)
from mcan.text.answers import normalise_answer
from mcan.text.vocabulary import UNK, Vocabulary, build_tokens, unknown_words_warning

TRAIN, VAL = "train", "val"
_CHOOSING = ("token_splits", "answer_splits", "min_answer_count", "top_answers", "count_answers")
"""Options that choose a vocabulary."""


@dataclass(frozen=True)
class DatasetRecipe:
    """How a dataset differs from others; the last five are defaults of its command line.

    - `folder`: the dataset's folder, which has its name;
    - `splits`: the files of each, as named in `raw/`, questions before annotations. A file in an
      archive is `archive.zip/name.json`; it is also found as `name.json` and `name.json.gz`;
    - `read`: the examples of these files, if they are not as `read_files` reads them;
    - `count_answers`: the vocabulary counts the `chosen` answer of each question, or `every` one;
    - `carve_validation`: share of the training images held out if there is no validation split.
    """

    folder: Path
    splits: Mapping[str, tuple[str, ...]]
    read: Callable[..., Iterable[Example]] | None = None
    min_answer_count: int | None = 9
    top_answers: int | None = None
    count_answers: str = "chosen"
    carve_validation: float = 0.0
    metric: str = "vqa"

    def prepare(self, arguments: Sequence[str] | None = None) -> int:
        """Run the whole command."""
        options = self.parser().parse_args(arguments)
        splits, sources = self.read_splits(options)
        answers = answer_vocabulary(splits, options)
        return self.write(arguments, options, splits, sources, answers)

    def parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            description=f"Prepare {self.folder.name}: JSON -> prepared/.",
            parents=[output_parser(self.folder)],
            formatter_class=DefaultsInHelp,
        )
        add = parser.add_argument
        add("--raw", type=Path, default=self.folder / "raw", help="folder of the official files")
        given = parser.add_mutually_exclusive_group()
        given.add_argument("--splits", nargs="+", choices=[*self.splits], help="default: all")
        text = (
            "a split from your own files: questions before annotations, or files of records "
            "(JSON, JSON lines, CSV, TSV, Parquet); once per split"
        )
        metavar = ("SPLIT", "FILE")
        given.add_argument("--files", nargs="+", action="append", metavar=metavar, help=text)
        if self.read is None:
            text = f"names of the fields of records; roles: {', '.join(NAMES)}"
            add("--fields", nargs="+", action="extend", default=[], metavar="ROLE=FIELD", help=text)
            add("--ids", choices=ID_RULES, default="stem", help=ID_HELP)
        add("--metric", choices=[*METRICS], help="accuracy that is reported")
        add("--token-splits", nargs="+", default=[TRAIN], help="splits that the words come from")
        add("--answer-splits", nargs="+", default=[TRAIN], help="splits that the answers come from")
        add("--min-answer-count", type=positive, help="least count of an answer")
        add("--top-answers", type=positive, help="the most frequent answers")
        text = "count one answer per question or the answers of all people"
        add("--count-answers", choices=("chosen", "every"), help=text)
        text = "share of the training images to hold out if there is no split val"
        add("--carve-validation", type=float, metavar="SHARE", help=text)
        add("--seed", type=natural, default=0, help="draws the images held out")
        options = "min_answer_count", "top_answers", "count_answers", "carve_validation", "metric"
        parser.set_defaults(**{name: getattr(self, name) for name in options})
        return parser

    def read_splits(self, options: argparse.Namespace) -> tuple[dict[str, RawSplit], list[Path]]:
        """The splits asked for, or a validation split carved from train, and the files read."""
        default = self.parser().get_default
        if options.vocabulary_from and any(getattr(options, k) != default(k) for k in _CHOOSING):
            raise DataError(
                "--vocabulary-from brings words and answers; leave out what chooses others"
            )
        share, paths = options.carve_validation, self._paths(options)
        if not 0 <= share < 1:
            raise DataError(f"--carve-validation is {share}, expected at least 0 and below 1")
        splits: dict[str, RawSplit] = {}
        earlier = None
        reader = self.read or partial(
            read_files,
            fields=read_pairs(options.fields, "--fields", NAMES),
            ids=ImageIds(options.ids),
        )
        for name, files in paths.items():
            # Splits are trained on together and share image stores, so their ids are of one type.
            splits[name] = earlier = RawSplit.collect(reader(*files), files[0], earlier)
        if share and VAL not in splits and TRAIN in splits:
            images, files = splits[TRAIN].images.names, paths[TRAIN]
            if len(images) == 1:
                raise DataError(
                    f"{files[0]}: of one image none can be held out; use a second one, "
                    "or --carve-validation 0"
                )
            count = min(max(1, round(share * len(images))), len(images) - 1)
            drawn = np.random.default_rng(options.seed).permutation(len(images))[:count]
            held_out = {images[index] for index in drawn.tolist()}
            for name, inside in ((TRAIN, False), (VAL, True)):
                examples = (e for e in reader(*files) if (e.image_id in held_out) == inside)
                splits[name] = RawSplit.collect(examples, files[0])
        for name, split in splits.items():
            if split.contradictions:
                message(
                    f"warning: {paths.get(name, paths[TRAIN])[0]}: {split.contradictions:,} of "
                    f"{len(split):,} questions of {name} have a multiple_choice_answer that nobody "
                    "gave; their most frequent answer is used instead"
                )
        return splits, [path for files in paths.values() for path in files]

    def _paths(self, options: argparse.Namespace) -> dict[str, list[Path]]:
        if not options.files:
            chosen = {name: self.splits[name] for name in options.splits or self.splits}
            return {
                name: [_find(options.raw, file) for file in files] for name, files in chosen.items()
            }
        paths = {name: [Path(file) for file in files] for name, *files in options.files}
        if len(paths) < len(options.files):
            raise DataError("--files: a split is given twice")
        for name, files in paths.items():
            if not files or (self.read is not None and len(files) > 1):
                raise DataError(
                    f"--files {name}: expected a split and its file, --files SPLIT FILE"
                )
        return paths

    def write(
        self,
        arguments: Sequence[str] | None,
        options: argparse.Namespace,
        splits: Mapping[str, RawSplit],
        sources: Iterable[Path],
        answers: tuple[str, ...],
    ) -> int:
        """`write_dataset` with the words of `--token-splits`."""
        named = [] if options.vocabulary_from else _select(splits, options.token_splits)
        tokens = build_tokens(question for split in named for question in split.questions)
        return write_dataset(
            self.folder,
            arguments,
            splits,
            Vocabulary(tokens, answers),
            metric=options.metric,
            # With its folder, as files of one name may be in several.
            sources={"/".join(p.parts[-2:]): sha256_of(p) for p in map(file_on_disk, sources)},
        )


def output_parser(folder: Path) -> argparse.ArgumentParser:
    """The options that every `prepare.py` takes, for `parents`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--output", type=Path, default=folder / "prepared", help="folder to write (%(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace the folder if it exists")
    text = "take words and answers from this run or checkpoint, so that its model can be asked"
    parser.add_argument("--vocabulary-from", type=StoredVocabulary.open, metavar="RUN", help=text)
    return parser


class StoredVocabulary(NamedTuple):
    """The vocabulary of a `run` as it was given, a folder or a checkpoint, and the checkpoint."""

    vocabulary: Vocabulary
    checkpoint: Path
    run: str

    @classmethod
    def open(cls, run: str) -> StoredVocabulary:
        """Raises `RunError` if there is no checkpoint."""
        from mcan.engine.checkpoint import open_checkpoint  # imports torch, which takes a second

        content = open_checkpoint(Path(run))
        path = content.source or Path(run)
        return cls(Vocabulary.from_json(content.vocabulary, str(path)), path, run)


def _find(raw: Path, name: str) -> Path:
    plain = raw / Path(name).name
    for path in (plain, plain.with_name(f"{plain.name}.gz"), raw / name):
        if file_on_disk(path).is_file():
            return path
    lacks = f"neither {plain.name} nor {name} is" if plain.name != name else f"{name} is not"
    raise DataError(
        f"{raw}: {lacks} there; the README of the dataset folder says where to get it, --splits "
        "leaves a split out, and --files SPLIT FILE names files of your own"
    )


def _select(splits: Mapping[str, RawSplit], names: Sequence[str]) -> list[RawSplit]:
    for name in names:
        if name not in splits:
            raise DataError(
                f"the vocabulary needs split '{name}', but there is {', '.join(splits)}; choose "
                "with --token-splits and --answer-splits, or take that of a model with "
                "--vocabulary-from RUN"
            )
    return [splits[name] for name in names]


def answer_vocabulary(
    splits: Mapping[str, RawSplit], options: argparse.Namespace
) -> tuple[str, ...]:
    """The frequent normalised answers of the splits asked for, in order of first appearance, or
    those of `--vocabulary-from`.

    Raises `DataError` for a split that does not exist, and if no answer is left.
    """
    if options.vocabulary_from:
        stored: StoredVocabulary = options.vocabulary_from
        return stored.vocabulary.answers
    counts: Counter[str] = Counter()
    for split in _select(splits, options.answer_splits):
        if options.count_answers == "every":
            occurrences = np.bincount(split.answers.codes.values).tolist()
            given = dict(zip(split.answers.strings, occurrences, strict=True))
            given.pop(OTHER_ANSWER, None)
        else:
            given = split.majority_answers
        for answer, count in given.items():
            counts[normalise_answer(answer)] += count
    fewest = options.min_answer_count or 1
    best = dict(counts.most_common(options.top_answers))
    answers = tuple(answer for answer in counts if best.get(answer, 0) >= fewest)
    if not answers:
        raise DataError(
            f"no answer occurs {plural(fewest, 'time')} in {', '.join(options.answer_splits)}; "
            "choose with --answer-splits, --min-answer-count and, in records, --fields answer=FIELD"
        )
    return answers


def write_dataset(
    folder: Path,
    arguments: Sequence[str] | None,
    splits: Mapping[str, RawSplit | Iterable[Example]],
    vocabulary: Vocabulary,
    **more: Any,
) -> int:
    """Write a prepared folder by `write_prepared`, which takes `more`, and print its counts.

    `arguments` are those of the command of the dataset's `folder`. All but `--output` and `--force`
    are recorded, so that equal data stays equal. `--vocabulary-from` replaces the `vocabulary`.
    """
    options, kept = output_parser(folder).parse_known_args(arguments)
    if options.vocabulary_from:
        vocabulary, path, run = options.vocabulary_from
        kept += ["--vocabulary-from", run]
        more["vocabulary_from"] = "/".join(path.parts[-3:])
        more["sources"] = {**more["sources"], more["vocabulary_from"]: sha256_of(path)}
    counts = write_prepared(
        options.output,
        splits,
        vocabulary,
        dataset=folder.name,
        command=shlex.join(["python", f"data/{folder.name}/prepare.py", *kept]),
        force=options.force,
        **more,
    )
    print(
        f"{options.output}: {len(vocabulary.tokens):,} tokens, {len(vocabulary.answers):,} answers"
    )
    rows = [["split", "questions", "images", "words", "unknown", "with target", "bound"]]
    for name, count in counts.items():
        numbers = [f"{count[key]:,}" for key in ("questions", "images", "words", "unknown_words")]
        covered, bound = "-", "-"
        if count["bound"] is not None:
            covered = f"{100 - 100 * count['without_target'] / count['questions']:.2f} %"
            bound = f"{100 * count['bound']:.2f} %"
        rows.append([name, *numbers, covered, bound])
    print(align(rows))
    for name, count in counts.items():
        where = f"{options.output}, split {name}"
        unknown, given = count["unknown_words"], options.vocabulary_from is not None
        if text := unknown_words_warning(where, unknown, count["words"], given):
            message(f"warning: {text}")
        # Little in published datasets: 0.02 points in VQA v2.
        if count["bound"] is not None and count["bound"] < count["bound_normalised"] - 0.01:
            message(
                f"warning: {where}: by the metric {more['metric']} the best answers score only "
                f"{count['bound']:.2%}, as it compares the answer of people who all agree as they "
                f"wrote it; vqa_normalised, which gives {count['bound_normalised']:.2%}, always "
                "normalises (prepare.py --metric, evaluation.metric=)"
            )
    return 0


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
) -> dict[str, Any]:
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
    for name in splits:
        if not name or Path(name).name != name:
            raise DataError(f"{folder}: split name {name!r} cannot be the name of a file")
    counts = {}
    with _replacing(folder, force) as temporary:
        for name, content in splits.items():
            if not isinstance(content, RawSplit):
                examples = progress(content, desc=name, unit=" questions", delay=1)
                content = RawSplit.collect(examples, folder / f"{name}.h5")
            arrays, counts[name] = encode_split(content, vocabulary, metric)
            # Aligned, so that the arrays can be used as they are mapped.
            aligned = {"alignment_threshold": 1, "alignment_interval": 64}
            with (
                (temporary / f"{name}.h5").open("x+b") as raw,
                for_library(raw) as output,
                h5py.File(output, "w", **aligned) as file,
            ):
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


@contextmanager
def _replacing(given: Path, force: bool) -> Iterator[Path]:
    """Yield a new folder, which takes the place of `given` unless an exception is raised.

    It is in `.FOLDER.partial/`. What a killed process left there is put back or deleted first.
    """
    folder = given.resolve()  # a link stays one, and its folder on its disk
    partial = folder.parent / f".{folder.name}.partial"
    new, old = partial / "new", partial / "old"
    with saving(given):
        partial.mkdir(parents=True, exist_ok=True)
        lock = lock_file(partial / "lock")
    if lock is None:
        raise DataError(f"{given}: another process is preparing this folder")
    try:
        with saving(given):
            if old.exists() and not folder.exists():
                old.rename(folder)
            for left in (new, old):
                if left.exists():
                    shutil.rmtree(left)
            _refuse_to_replace(given, force)
            new.mkdir()
            yield new
            for file in (*new.iterdir(), new):
                sync(file)
            if folder.is_dir():
                folder.rename(old)
            new.rename(folder)
            sync(folder.parent)
    finally:
        with saving(given):
            if old.exists() and not folder.exists():
                old.rename(folder)
        remove_folder(partial)
        lock.release()


def _refuse_to_replace(folder: Path, force: bool) -> None:
    """Raise `DataError` if `folder` has files, and these are of others or there is no `force`."""
    found = {file.name for file in folder.iterdir()} if folder.exists() else set()
    if found and not force:
        raise DataError(f"{folder}: already exists; replace it with --force")
    written = {"meta.json"}
    # Also a folder with damaged splits, or of an earlier format version, can be replaced.
    with suppress(OSError, ValueError, KeyError, TypeError):
        written.update(parse_json((folder / "meta.json").read_bytes())["files"])
    if foreign := sorted(found - written):
        raise DataError(
            f"{folder}: contains {shorten(foreign)}, which prepare.py did not write; move it "
            "elsewhere before replacing the folder"
        )


def encode_split(
    split: RawSplit, vocabulary: Vocabulary, metric: str
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The datasets of a split's file, in their order, and the counts of the split.

    The soft target of a question is sparse: an answer of the vocabulary scores the metric's credit
    for the annotators who gave it, by its normalised form; in order of first appearance. `bound` is
    the metric's mean with the best answers, `bound_normalised` that of `vqa_normalised`; None
    without answers.
    """
    tokens = encode_questions(split.questions, vocabulary)
    rule, answers = METRICS[metric], split.answers
    classes = {normalise_answer(text): index for text, index in vocabulary.answer_index.items()}
    answer_of = [classes.get(normalise_answer(text)) for text in answers.strings]
    indices, credits = RaggedBuilder("i"), RaggedBuilder("f")
    for codes in answers.codes:
        given = Counter(answer_of[code] for code in codes.tolist())
        given.pop(None, None)
        indices.append(given)
        credits.append(rule.credit(count, len(codes)) for count in given.values())
    targets, scores = indices.build(), credits.build()
    arrays = {
        "question_ids": split.question_ids,
        "questions": split.questions.values,
        "questions_offsets": split.questions.offsets,
        "tokens": tokens.values,
        "token_offsets": tokens.offsets,
        "image_ids": ids_to_array(split.images.names),
        "image_index": split.images.codes,
        "target_index": targets.values,
        "target_score": scores.values,
        "target_offsets": targets.offsets,
        **_text("answer_strings", answers.strings),
        "human_answers": answers.codes.values,
        "human_answer_offsets": answers.codes.offsets,
        "answer_type": split.answer_types.codes,
        **_text("answer_type_names", split.answer_types.names),
        "question_type": split.question_types.codes,
        **_text("question_type_names", split.question_types.names),
    }
    counts: dict[str, Any] = {
        "questions": len(split),
        "images": len(split.images.names),
        "words": len(tokens.values),
        "unknown_words": int((tokens.values == UNK).sum()),
        "without_target": int((np.diff(targets.offsets) == 0).sum()),
    }
    for key, name in (("bound", metric), ("bound_normalised", "vqa_normalised")):
        best = upper_bound(name, answers, vocabulary.answers) if answers.complete else None
        counts[key] = None if best is None else float(best.mean())
    return arrays, counts


def _text(name: str, strings: Iterable[str]) -> dict[str, NDArray[Any]]:
    text = Text.of(strings)
    return {name: text.values, f"{name}_offsets": text.offsets}
