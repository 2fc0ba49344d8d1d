#!/usr/bin/env python3
"""Export a model for others: `python scripts/export.py RUN FOLDER`, or `--program FILE.pt2`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from mcan.api import Model, load
from mcan.batch import Image, Question
from mcan.console import message, positive
from mcan.engine.exported import write_exported
from mcan.errors import DataError, RunError, command
from mcan.evaluation.results import METRICS_FILE, ResultSummary
from mcan.files import save_text, write_atomically
from mcan.rows import Padded


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write a model as a folder of safetensors, YAML and JSON, with a model card. "
        "`mcan.load`, eval.py and train.init_from accept the folder."
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="run folder or .pt file")
    add("folder", metavar="FOLDER", type=Path, nargs="?", help="new or empty folder to write")
    add("--checkpoint", choices=("last", "best"), default="last", help="checkpoint of a run")
    add(
        "--program",
        type=Path,
        metavar="FILE.pt2",
        help="write the network as a torch.export program with padded tensors as inputs",
    )
    meaning = "words per question, for --program (default: %(default)s)"
    add("--max-words", type=positive, default=14, help=meaning)
    meaning = "regions per image, for --program (default: %(default)s)"
    add("--max-regions", type=positive, default=100, help=meaning)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.folder is None and args.program is None:
        raise RunError("name a FOLDER, or a file with --program")
    for path in (args.folder, args.program):
        if path is not None and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
            raise RunError(f"{path}: exists; choose another name")
    model = load(args.run, device="cpu", checkpoint=args.checkpoint)
    if args.program is not None:
        program = export_program(model, args.max_words, args.max_regions)
        write_atomically(args.program, partial(torch.export.save, program))
        message(f"written: {args.program}")
    if args.folder is not None:
        write_exported(model.checkpoint, args.folder)
        save_text(args.folder / "README.md", model_card(model, find_results(args.run, model)))
        message(f"written: {args.folder}; fill in the licence in README.md")


class PlainNetwork(nn.Module):
    """The network on padded tensors: words (B, n) and their mask; then features (B, m, D), their
    mask and, if the network embeds boxes, boxes (B, m, 4); or pixels (B, 3, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        tokens: Tensor,
        word_mask: Tensor,
        image: Tensor,
        region_mask: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Tensor:
        if region_mask is None:
            one = torch.ones(image.shape[0], 1, dtype=torch.bool, device=image.device)
            picture = Image(Padded(one, some_empty=False), pixels=image)
        else:
            picture = Image(Padded(region_mask), image, boxes)
        logits: Tensor = self.network(Question(tokens, Padded(word_mask, False)), picture)
        return logits


def export_program(model: Model, words: int, regions: int) -> torch.export.ExportedProgram:
    """Export `PlainNetwork` as a program for any number of questions. Raises `DataError` for a
    network that needs grid cells."""
    config, sizes = model.config, model.checkpoint.sizes
    pixels = config.model.image.input == "pixels"
    if config.data.grid or (config.model.image.position_encoding and not pixels):
        raise DataError(
            "--program: a network that needs grid cells cannot be exported as a program"
        )
    batch, mask = 2, torch.ones(2, regions, dtype=torch.bool)
    inputs = [torch.ones(batch, words, dtype=torch.int64), torch.ones(batch, words).bool()]
    if pixels:
        inputs.append(torch.zeros(batch, 3, *model.pixel_size))
    else:
        inputs += [torch.zeros(batch, regions, sizes["feature_size"] or 1), mask]
        inputs += [torch.zeros(batch, regions, 4)] if config.model.image.boxes else []
    size = torch.export.Dim("questions", min=1, max=4096)
    with torch.no_grad():
        return torch.export.export(
            PlainNetwork(model.network), tuple(inputs), dynamic_shapes=[{0: size}] * len(inputs)
        )


def find_results(run: Path, model: Model) -> list[ResultSummary]:
    """The results of eval.py for this checkpoint in the run's folder, one entry per split.

    Results on other data than the config's, or on a part of it, are in folders named `data_*`.
    """
    files = sorted((run / "predictions").glob(f"*/{METRICS_FILE}")) if run.is_dir() else []
    files = [file for file in files if not file.parent.name.startswith("data_")]
    found = [ResultSummary.read(file) for file in files]
    return [each for each in found if each.steps == (model.checkpoint.position["step"],)]


def model_card(model: Model, results: list[ResultSummary]) -> str:
    """The model card in Markdown, with the front matter that model hubs read."""
    trained = model.checkpoint.trained_on
    datasets, name = list(dict.fromkeys(each["dataset"] for each in trained)), model.config.name
    entries = [
        {
            "task": {"type": "visual-question-answering"},
            "dataset": {
                "name": result.dataset,
                "type": result.dataset,
                "split": _split(result),
            },
            "metrics": [
                {"type": "accuracy", "name": result.metric, "value": round(result.overall, 2)}
            ],
        }
        for result in results
    ]
    front = {
        "license": "other",
        "library_name": "mcan",
        "pipeline_tag": "visual-question-answering",
        "tags": ["mcan", "vqa"],
        "datasets": datasets,
        "metrics": ["accuracy"],
        "model-index": [{"name": name, "results": entries}],
    }
    splits = [
        f"{'before that ' if each.get('before') else ''}{each['dataset']}: {each['split']} "
        f"({each['questions']:,} questions)"
        for each in trained
    ]
    lines = [
        f"| {_split(r)} | {r.n:,} | {r.overall:.2f} | {r.metric} | "
        f"`python eval.py FOLDER --split {r.split}` |"
        for r in results
    ]
    table = [
        "| split | questions | accuracy % | metric | command |",
        "|---|---:|---:|---|---|",
        *lines,
    ]
    parameters = sum(p.numel() for p in model.network.parameters())
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).rstrip(),
            "---",
            "",
            f"# {name}",
            "",
            "A Modular Co-Attention Network (MCAN; Yu et al., CVPR 2019) for visual question "
            f"answering, {parameters:,} parameters, {len(model.vocabulary.answers):,} answers.",
            "",
            f"Trained on {', '.join(splits)}; {model.checkpoint.position['step']:,} steps.",
            "",
            *(table if results else ["Not evaluated yet: `python eval.py FOLDER --split SPLIT`."]),
            "",
            "```python",
            "import mcan",
            "",
            'model = mcan.load("FOLDER")',
            'model.answer("picture.png", "what color is it?")',
            "```",
            "",
        ]
    )


def _split(result: ResultSummary) -> str:
    return f"{result.split} (first {result.n:,})" if result.limit else result.split


if __name__ == "__main__":
    command(main)
