#!/usr/bin/env python3
"""Measure whether the attention of a trained model explains its answers; see `--help`."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import NonNegativeInt, TypeAdapter, ValidationError

import mcan
from mcan.api import Model
from mcan.console import positive
from mcan.data.arrays import array_to_ids
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.drawing import drawing, line_style
from mcan.errors import DataError, RunError, command
from mcan.evaluation.metrics import accuracies, rows_by_type
from mcan.evaluation.results import name_ids
from mcan.explain.analysis import (
    ANY,
    RANKINGS,
    Array,
    Targets,
    area,
    erase,
    erased_answers,
    study,
)
from mcan.files import refuse_existing, save_text, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OVERRIDE = re.compile(r"[\w.]+=")
_TARGETS = TypeAdapter(dict[str, dict[str, list[NonNegativeInt]]])
_TITLES = {"words": "words erased", "regions": "image rows erased"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure the entropy of every unit and head, the share of attention on the "
        "image rows that matter, and the accuracy when the most attended, least attended or random "
        "words and image rows are erased. Writes analysis.json, analysis.md and plots.",
    )
    parser.add_argument(
        "arguments",
        metavar="RUN | key=value",
        nargs="+",
        help="run folder, exported folder or .pt file; key=value changes a stored config key",
    )
    parser.add_argument("--split", help="split to analyse (default: the config's data.evaluate)")
    parser.add_argument(
        "--targets",
        type=Path,
        metavar="FILE.json",
        help="the image rows that matter: {question id: {name: [row, ...]}}; rows count from 0, as "
        "in the store or, for pixels, as the stem's cells row by row",
    )
    parser.add_argument(
        "--output", type=Path, help="folder to write (default: analysis/SPLIT_STEP in the run)"
    )
    parser.add_argument("--limit", type=positive, help="use only the first LIMIT questions")
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse()
    overrides = [text for text in args.arguments if _OVERRIDE.match(text)]
    runs = [text for text in args.arguments if not _OVERRIDE.match(text)]
    if len(runs) != 1:
        raise RunError(f"expected one run folder or checkpoint, not {len(runs)}")
    refuse_existing(args.output, "--output")
    limit = [f"data.limit={args.limit}"] if args.limit else []
    model = mcan.load(runs[0], overrides=[*overrides, *limit])
    dataset = model.split(args.split)
    split, step = dataset.splits[0].name, model.checkpoint.position["step"]
    folder = args.output or default_folder(model, f"{split}_step_{step:08d}")
    refuse_existing(folder, "--output")
    if not dataset.splits[0].human_answers.complete:
        raise DataError(f"{dataset.splits[0].path}: some questions have no human answers")
    targets = read_targets(args.targets, model, dataset) if args.targets else {}
    result = {
        "command": f"python scripts/analyse_attention.py {shlex.join(sys.argv[1:])}",
        "checkpoint": str(model.checkpoint.source),
        "step": step,
        "split": split,
        "questions": len(dataset),
        **analyse(model, dataset, targets),
    }
    save_text(folder / "analysis.json", json.dumps(result, indent=1) + "\n")
    save_text(folder / "analysis.md", report(result))
    with drawing():
        for name, figure in figures(result).items():
            options: Any = {"format": "png", "metadata": {"Software": None}}
            write_atomically(folder / name, partial(figure.savefig, **options))
    print(f"written: {folder}")


def default_folder(model: Model, name: str) -> Path:
    """A folder in the run, or beside a checkpoint outside a run."""
    around = (model.checkpoint.source or Path()).parent
    return (around.parent if around.name == "checkpoints" else around) / "analysis" / name


def read_targets(path: Path, model: Model, dataset: VQADataset) -> Targets:
    """The targets of the questions of `dataset`, which may be the start of a split."""
    try:
        given = _TARGETS.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ": ".join(map(str, first["loc"]))
        raise DataError(f"{path}: {where or 'the file'}: {first['msg']}") from error
    split = Prepared.open(model.config.data.prepared).split(dataset.splits[0].name)
    known = set(map(str, array_to_ids(split.question_ids)))
    if unknown := [question for question in given if question not in known]:
        raise DataError(f"{path}: {name_ids(unknown)} not in {split.path}")
    of_questions = [given.get(str(question), {}) for question in dataset.question_ids()]
    names = dict.fromkeys(name for sets in of_questions for name, rows in sets.items() if rows)
    return {name: [rows.get(name, []) for rows in of_questions] for name in names}


def analyse(model: Model, dataset: VQADataset, targets: Targets) -> dict[str, Any]:
    """All results, as written to analysis.json; accuracies and shares are percentages."""
    humans, answers = list(dataset.splits[0].human_answers), model.vocabulary.answers
    metric = model.config.evaluation.metric or Prepared.open(model.config.data.prepared).metric
    bf16 = model.config.evaluation.precision == "bf16"

    def enter(batch: Any) -> Any:
        return batch.enter(model.device, "packed", torch.bfloat16 if bf16 else torch.float32)

    def score(modality: str, rows: Array, keep: Array) -> Array:
        found = erased_answers(model.network, dataset, enter, modality, rows, keep)
        pairs, inverse = np.unique(rows * len(answers) + found, return_inverse=True)
        given = [divmod(pair, len(answers)) for pair in pairs.tolist()]
        texts = [answers[answer] for _, answer in given]
        return accuracies(metric, texts, [humans[row] for row, _ in given])[inverse]

    observe = partial(model.observe, dataset, gradients=True)
    seen = study(observe, dataset.question_ids(), targets)
    groups = {"all questions": np.ones(len(dataset), bool)}
    for kind, types in (("answer", dataset.answer_types), ("question", dataset.question_types)):
        groups |= {f"{kind} type {name}": rows for name, rows in rows_by_type(types).items()}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        erased = {
            modality: erase(partial(score, modality), rankings, seen.counts[modality])
            for modality, rankings in seen.rankings.items()
        }
    return {
        "metric": metric,
        "groups": {name: int(rows.sum()) for name, rows in groups.items()},
        "entropy": {
            name: {"nats": _means(nats), "relative": _means(seen.relative[name])}
            for name, nats in seen.nats.items()
        },
        "targets": {
            name: {"questions": int((~np.isnan(share)).sum()), "even": _means(100 * share)}
            for name, share in zip(targets, seen.uniform.T, strict=True)
        },
        "mass": {name: _mass(mass, targets, groups) for name, mass in seen.mass.items() if targets},
        "erasure": {name: _curves(*one, groups) for name, one in erased.items()},
    }


def _means(values: Array) -> Any:
    """The mean over questions (axis 0) that have a value; None if none has."""
    valid = ~np.isnan(values)
    sums, counts = np.where(valid, values, 0).sum(0, dtype=float), np.array(valid.sum(0))
    means: Any = np.where(counts > 0, sums / counts.clip(1), None)
    return means.tolist()


def _mass(mass: Array, targets: Targets, groups: Mapping[str, Array]) -> dict[str, Any]:
    """Source -> target -> percentage per head, and of groups of questions the mean over heads."""
    shares = 100 * mass  # (Q, h, F, S)
    return {
        source: {
            target: {
                "heads": _means(shares[:, :, f, s]),
                "groups": {
                    name: _means(shares[rows, :, f, s].mean(1)) for name, rows in groups.items()
                },
            }
            for s, target in enumerate(targets)
        }
        for f, source in zip(range(mass.shape[2]), (ANY, *targets), strict=False)
    }


def _curves(
    steps: list[int], scores: Mapping[tuple[str, str], Array], groups: Mapping[str, Array]
) -> dict[str, Any]:
    """Accuracy of each group of questions by number of erased rows, and the area under it."""
    orders = []
    for (ranking, first), of_order in scores.items():
        curves = {name: 100 * of_order[:, rows].mean(1) for name, rows in groups.items()}
        orders.append(
            {
                "ranking": ranking,
                "first": first,
                "areas": {name: area(steps, curve) for name, curve in curves.items()},
                "curves": {name: curve.tolist() for name, curve in curves.items()},
            }
        )
    return {"steps": steps, "orders": orders}


def report(result: Mapping[str, Any]) -> str:
    """analysis.md"""
    heads = max(len(each["nats"]) for each in result["entropy"].values())
    head_names = [f"head {head}" for head in range(heads)]
    parts = [
        f"# Attention of {result['checkpoint']} on {result['split']}",
        f"`{result['command']}`: {result['questions']:,} questions, metric {result['metric']}.",
        "## Entropy",
        "Mean over queries and questions; for a reduction, glimpses take the place of heads. Even "
        "weights on k keys have entropy log k and relative entropy 1; a single key has entropy 0.",
        _table(
            ["attention", "nats", "relative", *head_names],
            [
                [name, _show(_mean(each["nats"]), 2), _show(_mean(each["relative"]), 2)]
                + [_show(value, 2) for value in each["relative"]]
                for name, each in result["entropy"].items()
            ],
        ),
    ]
    groups = [name for name in result["groups"] if not name.startswith("question type ")]
    for name, target in result["targets"].items():
        rows = []
        for attention, sources in result["mass"].items():
            for source, shares in sources.items():
                values = [shares[name]["groups"][group] for group in groups] + shares[name]["heads"]
                if values[0] is not None:
                    rows.append([attention, source, *map(_show, values)])
        parts += [
            f"## Share of the attention on: {name}",
            "In percent: mean over heads by group of questions, and by head; "
            f"{target['questions']:,} questions have this target. Even weights: "
            f"{_show(target['even'])}.",
            _table(["attention", "from", *groups, *head_names], rows),
        ]
    for modality, erased in result["erasure"].items():
        areas, curves = [], []
        for order in erased["orders"]:
            name = [order["ranking"], order["first"]]
            areas.append([*name, *(_show(order["areas"][group]) for group in groups)])
            curves.append([*name, *map(_show, order["curves"][groups[0]])])
        parts += [
            f"## Accuracy with {_TITLES[modality]}",
            "Area under the curve (mean accuracy in percent over the number of erased rows), by "
            "ranking and by which rows are erased first:",
            _table(["ranking", "first", *groups], areas),
            "Accuracy by number of erased rows:",
            _table(["ranking", "first", *map(str, erased["steps"])], curves),
        ]
    return "\n\n".join(parts) + "\n"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _show(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in GitHub's Markdown; numbers are right-aligned."""
    numbers = [
        all(re.fullmatch(r"[\d.]*", row[c]) for row in rows if c < len(row))
        for c in range(len(header))
    ]
    rule = ["---:" if right else "---" for right in numbers]
    filled = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        for row in (header, rule, *filled)
    )


def figures(result: Mapping[str, Any]) -> dict[str, Figure]:
    """attention.png: entropy, and share on each target. erasure.png: accuracy."""
    from matplotlib.figure import Figure

    def panels(height: float, **options: Any) -> tuple[Figure, Any]:
        figure = Figure(figsize=(8.8, height), layout="constrained")  # 880 pixels: unscaled
        return figure, figure.subplots(squeeze=False, **options)

    entropy, mass, targets = result["entropy"], result["mass"], result["targets"]
    names = list({**entropy, **mass})
    columns: list[tuple[str, str, float, dict[str, Any]]] = [
        ("entropy", "relative to even", 1, {name: entropy[name]["relative"] for name in entropy})
    ]
    for target, about in targets.items():
        shares = {name: mass[name][ANY][target]["heads"] for name in mass}
        columns.append((target, "share (%)", about["even"], shares))
    figure, axes = panels(1.2 + 0.28 * len(names), ncols=len(columns), sharey=True)
    for axis, (title, unit, even, values) in zip(axes[0], columns, strict=True):
        for name, of_heads in values.items():
            known = [value for value in of_heads if value is not None]
            for x, fill in ((known, "none"), ([_mean(known)], "full")):
                places = [names.index(name)] * len(x)
                style = {**line_style(0), "linestyle": "none", "clip_on": False, "zorder": 3}
                axis.plot(x, places, fillstyle=fill, **style)
        axis.axvline(even, color="black", linestyle="--", linewidth=1)
        axis.set(title=title, xlabel=unit, xlim=(0, None), ylim=(len(names) - 0.5, -0.5))
    axes[0, 0].set_yticks(range(len(names)), names)
    figure.supxlabel("full: mean of heads, hollow: heads, dashed: even weights", fontsize="small")
    found = {"attention.png": figure}

    rankings = [*RANKINGS, *(["targets"] if targets else [])]
    figure, axes = panels(5.2, nrows=2, ncols=len(rankings), sharey=True, sharex="row")
    for row, (modality, erased) in zip(axes, result["erasure"].items(), strict=True):
        for axis, ranking in zip(row, rankings, strict=True):
            axis.set(title=ranking, xlabel=_TITLES[modality])
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_visible(any(order["ranking"] == ranking for order in erased["orders"]))
            for number, first in enumerate(("most", "random", "least")):
                for order in erased["orders"]:
                    if order["first"] == first and order["ranking"] in (ranking, "random"):
                        style = {**line_style(number), "markersize": 4, "label": f"{first} first"}
                        axis.plot(erased["steps"], order["curves"]["all questions"], **style)
        row[0].set_ylabel("accuracy (%)")
    handles = axes[0, 1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3)
    return found | {"erasure.png": figure}


if __name__ == "__main__":
    command(main)
