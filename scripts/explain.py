#!/usr/bin/env python3
"""Show a run's answers to questions of a split, with its attention; see `--help`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import mcan
from mcan.api import Model, open_picture
from mcan.build import count_trained_on, unknown_stores
from mcan.console import message, natural, positive, progress
from mcan.data.arrays import Id, array_to_ids
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.errors import DataError, RunError, command, shorten
from mcan.evaluation.metrics import accuracies
from mcan.evaluation.results import Scorer
from mcan.explain.explanation import Explanation
from mcan.explain.page import write_page
from mcan.explain.weights import REDUCTIONS
from mcan.files import refuse_existing
from mcan.preparation.images import list_images
from mcan.preparation.names import ID_HELP, ID_RULES

_OVERRIDE = re.compile(r"[\w.]+=")
_FORMATS = {None: (".html",), "7": (".png", ".pdf", ".svg"), "8": (".png", ".pdf", ".svg")}
Pictures = Callable[[Id], Image.Image | None]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="explain.py RUN [--split S] [--questions ID ... | --worst N | --random N] "
        "[--changed RUN] [options] [key=value ...]",
        description="Write one HTML file with the answers and the attention for some questions: "
        "image and words shaded by each unit, layer and head, by the reductions, roll-out or "
        "relevance. Or draw the paper's figure 7 or 8.",
    )
    add = parser.add_argument
    add(
        "arguments",
        metavar="RUN_OR_CHECKPOINT | key=value",
        nargs="+",
        help="run folder, exported folder or .pt file; key=value changes a stored config key",
    )
    add("--split", help="default: the config's data.evaluate")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--questions", metavar="ID", nargs="+", help="the questions with these ids")
    chosen.add_argument(
        "--worst", type=positive, metavar="N", help="the N most confident wrong answers"
    )
    chosen.add_argument(
        "--random",
        type=positive,
        metavar="N",
        help="N random questions (default: 20; figure 7: 1, figure 8: 4)",
    )
    add("--seed", type=natural, metavar="N", help="seed of --random (default: 0)")
    add(
        "--changed",
        metavar="RUN",
        help="only questions that this run or checkpoint answers differently; key=value applies to "
        "both",
    )
    add("--images", type=Path, metavar="PATH", help="folder of images, or a store of pixels")
    add(
        "--ids",
        choices=ID_RULES,
        help=f"{ID_HELP} (default: coco if the ids are integers, else stem)",
    )
    add("--output", type=Path, help="new file (default: explain.html, figure_7.png)")
    add("--figure", choices=("7", "8"), help="draw this figure (.png, .pdf, .svg) and no page")
    add("--unit", metavar="NAME", help="shown when the page opens: image.1.GA, rollout, ...")
    add("--head", type=natural, metavar="N", help="head of --unit, from 0 (default: the mean)")
    add("--checkpoint", choices=("last", "best"), default="last", help="of a run (default: last)")
    args = parser.parse_intermixed_args()
    texts = [*args.arguments, *(args.questions or [])]
    args.overrides = list(filter(_OVERRIDE.match, texts))
    if args.questions:
        args.questions = [text for text in args.questions if text not in args.overrides]
    targets = [text for text in args.arguments if text not in args.overrides]
    if len(targets) != 1:
        raise RunError(f"name one run folder or checkpoint, not {shorten(targets) or 'none'}")
    args.run = targets[0]
    if args.head is not None and args.unit is None:
        raise RunError("--head needs --unit")
    if args.seed is not None and (args.questions or args.worst):
        raise RunError("--seed is for random questions; remove it")
    if args.ids and (args.images is None or args.images.is_file()):
        raise RunError("--ids is for names of image files; give their folder with --images")
    if args.figure and (args.unit or args.head is not None):
        raise RunError("--unit and --head are for pages; remove them or --figure")
    return args


def main() -> None:
    args = parse()
    name = f"figure_{args.figure}.png" if args.figure else "explain.html"
    output: Path = args.output or Path(name)
    if output.suffix not in (formats := _FORMATS[args.figure]):
        raise RunError(f"--output {output}: choose a name that ends in {' or '.join(formats)}")
    refuse_existing(output, "--output")
    model = mcan.load(args.run, checkpoint=args.checkpoint, overrides=args.overrides)
    dataset = model.split(args.split)
    (split,) = dataset.splits
    find = find_pictures(args, dataset)
    if args.unit:  # one question says whether it exists, before all of them are predicted
        next(model.explain_all(dataset, [0])).values(args.unit, args.head)
    rows, remarks, notes = choose_questions(model, dataset, args)
    explanations = explain(model, dataset, rows, find)
    if args.figure:
        draw_figures(args.figure, explanations, len(rows), output)
        return
    notes += warnings(model, dataset)
    left_out = write_page(
        output,
        explanations,
        f"{args.run} on {split.name}",
        notes=notes,
        remarks=remarks,
        show=args.unit or "reduction",
        head=args.head,
    )
    for text in left_out:
        message(f"warning: {output}: {text}")
    print(f"written: {output} ({len(rows):,} questions, {output.stat().st_size / 1e6:.1f} MB)")


def choose_questions(
    model: Model, dataset: VQADataset, args: argparse.Namespace
) -> tuple[list[int], list[str], list[str]]:
    """Choose rows of the dataset; return them, a remark on each, and how they were chosen."""
    (split,) = dataset.splits
    where, count = f"split {split.name}", len(dataset)
    pool, remarks, among = list(range(count)), {}, f"{count:,} questions"
    numbers = {str(i): row for row, i in enumerate(dataset.question_ids())}
    scorer = Scorer(dataset, metric_of(model), model.vocabulary.answers)
    if unknown := [i for i in args.questions or () if i not in numbers]:
        raise RunError(f"{where} has no question {shorten(unknown)}")
    if args.worst and not scorer.possible:
        raise RunError(f"{where} has no human answers; --worst needs them")
    if args.changed:
        remarks = changed_answers(model, dataset, args)
        pool, among = sorted(remarks), f"{len(remarks):,} that {args.changed} answers differently"
        if not pool:
            raise RunError(f"{args.changed} gives the same answers to all {count:,} questions")
    if args.questions:
        rows, how = [numbers[i] for i in args.questions], "chosen by id"
        if args.changed and (same := [i for i in args.questions if numbers[i] not in remarks]):
            raise RunError(f"{args.changed} gives the same answer to question {shorten(same)}")
    elif args.worst:
        predictions = model.predict(dataset)
        wrong, chances = scorer.scores(predictions) == 0, predictions.probabilities[:, 0]
        rows = sorted((row for row in pool if wrong[row]), key=lambda row: -chances[row])
        if not rows:
            raise RunError(f"none of {among} of {where} has a wrong answer")
        rows, how = rows[: args.worst], f"the most confident of {len(rows):,} mistakes"
    else:
        number = args.random or {"7": 1, "8": 4}.get(args.figure, 20)
        seed = args.seed or 0
        random = np.random.default_rng(seed)
        rows = sorted(random.choice(pool, min(number, len(pool)), replace=False).tolist())
        how = f"at random (seed {seed})"
    note = f"{len(rows):,} of {among}: {how}."
    return rows, [remarks.get(row, "") for row in rows], [note]


def changed_answers(model: Model, dataset: VQADataset, args: argparse.Namespace) -> dict[int, str]:
    """The other run's answer, for each row that it answers differently."""
    other = mcan.load(args.changed, checkpoint=args.checkpoint, overrides=args.overrides)
    (split,) = dataset.splits
    theirs = other.split(split.name)
    (same,) = theirs.splits
    if split.questions_digest != same.questions_digest:
        raise DataError(f"{same.path}: not the questions of {split.path}")
    ours, found = model.predict(dataset).answers[:, 0], other.predict(theirs)
    texts = [other.vocabulary.answers[a] for a in found.answers[:, 0].tolist()]
    return {
        row: f"{args.changed}: {text} ({chance:.1%})"
        for row, (a, text, chance) in enumerate(
            zip(ours.tolist(), texts, found.probabilities[:, 0].tolist(), strict=True)
        )
        if model.vocabulary.answers[a] != text
    }


def metric_of(model: Model) -> str:
    config = model.config
    return config.evaluation.metric or Prepared.open(config.data.prepared).metric


def explain(
    model: Model, dataset: VQADataset, rows: Sequence[int], find: Pictures
) -> Iterator[Explanation]:
    """Yield the explanations, completed with the score of the first answer and the image."""
    metric, missing = metric_of(model), {}
    explained = progress(model.explain_all(dataset, rows), "explaining", len(rows), leave=False)
    for seen in explained:
        facts = seen.facts
        assert facts is not None
        if facts.human_answers:
            (score,) = accuracies(metric, [seen.answers[0].text], [facts.human_answers])
            seen = replace(seen, facts=replace(facts, score=float(score)))
        try:
            seen = replace(seen, picture=find(facts.image_id) or seen.picture)
        except DataError as error:
            if seen.picture is None:  # the network's own store has none either
                missing[facts.image_id] = error
        yield seen
    for image_id, reason in list(missing.items())[:5]:
        message(f"warning: image {image_id!r} cannot be shown: {reason}")
    if len(missing) > 5:
        message(f"warning: nor can {len(missing) - 5:,} more images")


def find_pictures(args: argparse.Namespace, dataset: VQADataset) -> Pictures:
    """A function that finds the image of an id in --images: None without --images, `DataError` if
    the image is missing."""
    source: Path | None = args.images
    if source is None:
        return lambda image_id: None
    if source.is_file():
        store = open_store(source)
        if store.kind != "pixels":
            raise DataError(f"{source}: contains {store.kind}, not pixels")
        places = {i: number for number, i in enumerate(array_to_ids(store.image_ids))}

        def find(image_id: Id) -> Image.Image:
            if image_id not in places:
                raise DataError(f"{source} does not contain it")
            pixels, _, _ = store.image(places[image_id])
            return Image.fromarray(np.asarray(pixels)[0].transpose(1, 2, 0))
    elif source.is_dir():
        integers = dataset.splits[0].image_ids.dtype.kind != "S"
        found = list_images(source, args.ids or ("coco" if integers else "stem"))
        paths = {str(i): path for i, path in found.items()}

        def find(image_id: Id) -> Image.Image:
            if str(image_id) not in paths:
                raise DataError(f"{source} does not contain it")
            return open_picture(paths[str(image_id)])
    else:
        raise DataError(f"{source}: no such folder of images or store of pixels")

    return find


def warnings(model: Model, dataset: VQADataset) -> list[str]:
    """What a reader of the page has to know about the data."""
    stores = (*dataset.images.stores, *(dataset.grid.stores if dataset.grid else ()))
    prepared = Prepared.open(model.config.data.prepared)
    texts = unknown_stores(model.checkpoint, stores)
    if seen := count_trained_on(model.checkpoint, prepared, dataset.splits[0]):
        texts.append(f"the network was trained on {seen:,} questions of this split")
    for text in texts:
        message(f"warning: {text}")
    return [f"Warning: {text}." for text in texts]


def draw_figures(
    figure: str, explanations: Iterator[Explanation], count: int, output: Path
) -> None:
    """Draw figure 8 of all questions, or figure 7 of each, numbered if there are several."""
    from mcan.explain.figures import draw_figure_7, draw_figure_8, save_figure

    if figure == "8":
        # Many questions on many cells would not fit into memory with the weights of all units.
        seen = [replace(e, weights={n: e.weights[n] for n in REDUCTIONS}) for e in explanations]
        save_figure(draw_figure_8(seen), output)
        print(f"written: {output}")
        return
    names = [f"{output.stem}_{number}" for number in range(1, count + 1)]
    paths = [output.with_stem(name) for name in names] if count > 1 else [output]
    for path in paths:
        refuse_existing(path, "--output")
    for path, one in zip(paths, explanations, strict=True):
        save_figure(draw_figure_7(one), path)
    print(*(f"written: {path}" for path in paths), sep="\n")


if __name__ == "__main__":
    command(main)
