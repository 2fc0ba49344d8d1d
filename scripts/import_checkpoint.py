#!/usr/bin/env python3
"""Turn an authors' checkpoint into one that eval.py runs; see `--help`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcan.batch import Image, Question
from mcan.build import build_model
from mcan.config import config_from_dict
from mcan.engine.checkpoint import Checkpoint
from mcan.errors import DataError, RunError, command
from mcan.files import parse_json, refuse_existing
from mcan.nn.mcan import MCAN, ModelSizes
from mcan.nn.official import convert_official
from mcan.preparation.questions import read_questions
from mcan.rows import Padded
from mcan.text.vocabulary import SPECIAL_TOKENS, Vocabulary, build_tokens

TOLERANCE = 1e-4
DATA = {
    "prepared": "data/vqa_v2/prepared",
    "images": ["data/vqa_v2/features/trainval2014.h5", "data/vqa_v2/features/test2015.h5"],
    "max_tokens": 14,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Turn a checkpoint of the authors' code (mcan-vqa) into one of this project.",
        epilog="Every tensor is accounted for; sizes are read from the shapes. The vocabulary is "
        "not in the authors' file: give the files that define it, in the authors' order (train, "
        "val, test, vg), or the checkpoint can be checked and inspected, but not evaluated.",
    )
    parser.add_argument("state", metavar="STATE", type=Path, help=".pkl, or .npz with sd/<key>")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write (.pt)")
    parser.add_argument("--answers", type=Path, help="the authors' answer_dict.json")
    parser.add_argument("--questions", type=Path, nargs="+", default=[], help="question files")
    parser.add_argument("--heads", type=int, default=8, help="attention heads (default: 8)")
    parser.add_argument(
        "--splits", nargs="*", default=["train", "val", "vg"], help="what it was trained on"
    )
    parser.add_argument(
        "--check", type=Path, metavar="REC.npz", help="img_feat, ques_ix, logits to equal to 1e-4"
    )
    return parser.parse_args()


def main() -> int:
    args = parse()
    refuse_existing(args.output, "--output")
    try:
        official = convert_official(read_state(args.state), args.heads)
    except ValueError as error:
        raise RunError(f"{args.state}: {error}") from error
    sizes, section = official.sizes, {**official.model, "dropout": 0.1}
    name = args.output.stem
    config = config_from_dict({"name": name, "data": DATA, "model": section}, str(args.state))
    vocabulary = read_vocabulary(args.questions, args.answers, sizes)
    checkpoint = Checkpoint(
        config=config.model_dump(mode="json"),
        vocabulary=vocabulary.to_json(),
        vocabulary_digest=vocabulary.digest,
        sizes=asdict(sizes),
        trained_on=[
            {"dataset": "vqa_v2", "split": split, "questions": 0, "digest": "", "content": ""}
            for split in args.splits
        ],
        model=official.state,
        source=args.state,
    )
    model = build_model(config.model, sizes).eval()
    checkpoint.restore(model)
    parameters = sum(value.numel() for value in official.state.values())
    counts = f"{sizes.tokens:,} tokens, {sizes.answers:,} answers"
    print(f"{args.state}: {len(official.state)} tensors, {parameters:,} parameters, {counts}")
    if args.check:
        difference = largest_difference(model, args.check)
        print(f"{args.check}: largest difference of logits {difference:.3g}")
        if not difference <= TOLERANCE:
            print(f"not written: the difference is above {TOLERANCE:g}")
            return 1
    checkpoint.save(args.output)
    print(f"written: {args.output}")
    return 0


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The state dictionary in `path`, without executing anything in it."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                names = [name for name in arrays.files if name.startswith("sd/")]
                return {name[3:]: torch.from_numpy(arrays[name]) for name in names}
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {name: value.detach() for name, value in content.get("state_dict", content).items()}
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes fail in any way; foreign pickles are not executed
        raise RunError(f"{path}: not loaded; expected tensors of torch.save, or .npz") from error


def read_vocabulary(
    questions: Sequence[Path], answers: Path | None, sizes: ModelSizes
) -> Vocabulary:
    """Of the question files and the authors' answer_dict.json; stand-ins if they are not given."""
    words = (f"token{number}" for number in range(len(SPECIAL_TOKENS), sizes.tokens))
    tokens: tuple[str, ...] = (*SPECIAL_TOKENS, *words)
    if questions:
        tokens = build_tokens(q.question for path in questions for q in read_questions(path))
    if (found := len(tokens)) != sizes.tokens:
        raise DataError(f"--questions: {found:,} tokens, but the embedding has {sizes.tokens:,}")
    indices = {f"answer {number}": number for number in range(sizes.answers)}
    try:
        if answers is not None:
            indices, _ = parse_json(answers.read_text(encoding="utf-8"))
        if sorted(indices.values()) != list(range(sizes.answers)):
            raise ValueError
        return Vocabulary(tokens, tuple(sorted(indices, key=indices.__getitem__)))
    except (AttributeError, TypeError, ValueError) as error:
        expected = f"the authors' dict of {sizes.answers} answers"
        raise DataError(f"{answers}: expected {expected}") from error


def largest_difference(model: MCAN, path: Path) -> float:
    """Largest absolute difference to the recorded logits."""
    try:
        with np.load(path, allow_pickle=False) as recorded:
            names = ("img_feat", "ques_ix", "logits")
            features, tokens, logits = (torch.from_numpy(recorded[name]) for name in names)
        # The reference marks padding by zeros.
        question = Question(tokens.long(), Padded(tokens != 0))
        image = Image(Padded(features.abs().sum(-1) > 0), features)
        with torch.inference_mode():
            found = model(question, image)
        if found.shape != logits.shape:  # they must not broadcast
            raise ValueError
        return float((found - logits).abs().max())
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes fail in any way
        message = "expected an .npz with img_feat, ques_ix and logits that fit the network"
        raise DataError(f"{path}: {message}") from error


if __name__ == "__main__":
    command(main)
