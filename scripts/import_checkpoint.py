#!/usr/bin/env python3
"""Turn an authors' checkpoint into one that eval.py runs; see `--help`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcan.batch import ImageInput
from mcan.config import config_from_dict
from mcan.data.vqa_layout import read_questions
from mcan.engine.checkpoint import Checkpoint
from mcan.errors import DataError, RunError, command
from mcan.files import saving
from mcan.nn.mcan import MCAN, build_model
from mcan.nn.official import OfficialModel, convert_official
from mcan.ragged import Ragged
from mcan.text.vocabulary import SPECIAL_TOKENS, Vocabulary, build_tokens

TOLERANCE = 1e-4


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
    parser.add_argument(
        "--questions", type=Path, nargs="+", default=[], help="question files, in order"
    )
    parser.add_argument("--heads", type=int, default=8, help="attention heads (default: 8)")
    parser.add_argument(
        "--splits",
        nargs="*",
        default=["train", "val", "vg"],
        help="what it was trained on, for warnings (default: train val vg)",
    )
    parser.add_argument(
        "--check",
        type=Path,
        metavar="RECORDED.npz",
        help="compare with recorded img_feat, ques_ix, logits; exit status 1 above 1e-4",
    )
    return parser.parse_args()


def main() -> int:
    args = parse()
    if args.output.exists():
        raise RunError(f"{args.output}: exists; choose another --output")
    try:
        official = convert_official(read_state(args.state), args.heads)
        model = build(official)
    except ValueError as error:
        raise RunError(f"{args.state}: {error}") from error
    print(
        f"{args.state}: {len(official.state)} tensors, "
        f"{sum(value.numel() for value in official.state.values()):,} parameters, "
        f"{official.sizes.tokens:,} tokens, {official.sizes.answers:,} answers"
    )
    if args.check:
        difference = largest_difference(model, args.check)
        print(f"{args.check}: largest difference of logits {difference:.3g}")
        if not difference <= TOLERANCE:
            print(f"not written: the difference is above {TOLERANCE:g}")
            return 1
    vocabulary = Vocabulary(tokens(args.questions, official), answers(args.answers, official))
    with saving(args.output):
        args.output.parent.mkdir(parents=True, exist_ok=True)
    as_checkpoint(official, vocabulary, args.splits, args.output.stem).save(args.output)
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
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except Exception as error:  # damaged bytes fail in any way; foreign pickles are not executed
        raise RunError(
            f"{path}: not loaded; expected tensors and plain values written by torch.save, or .npz"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise RunError(f"{path}: holds no state dictionary of tensors")
    return state


def build(official: OfficialModel) -> MCAN:
    """The network in evaluation mode; `ValueError` where a tensor's shape does not fit."""
    model = build_model(settings(official, "check").model, official.sizes)
    try:
        model.load_state_dict(official.state)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split("\n")[1:2]).strip()) from None
    return model.eval()


def settings(official: OfficialModel, name: str) -> Any:
    """A config that is the reference's recipe with the model that the shapes tell."""
    section = {**official.model, "dropout": 0.1}
    data = {
        "prepared": "data/vqa_v2/prepared",
        "images": [
            "data/vqa_v2/features/trainval2014.h5",
            "data/vqa_v2/features/test2015.h5",
        ],
        "max_tokens": 14,
    }
    return config_from_dict({"name": name, "data": data, "model": section}, "the imported state")


def tokens(questions: list[Path], official: OfficialModel) -> tuple[str, ...]:
    """The token vocabulary of the question files, or stand-ins where none are given."""
    expected = official.sizes.tokens
    if not questions:
        words = tuple(f"token{number}" for number in range(len(SPECIAL_TOKENS), expected))
        return (*SPECIAL_TOKENS, *words)
    found = build_tokens(q.text for path in questions for q in read_questions(path))
    if len(found) != expected:
        raise DataError(
            f"{', '.join(map(str, questions))}: {len(found):,} tokens with PAD and UNK, but the "
            f"embedding has {expected:,} rows; give the files of train, val, test, vg in this order"
        )
    return found


def answers(path: Path | None, official: OfficialModel) -> tuple[str, ...]:
    """The answers of the authors' answer_dict.json, or stand-ins where it is not given."""
    expected = official.sizes.answers
    if path is None:
        return tuple(f"answer {number}" for number in range(expected))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON file") from error
    table = content[0] if isinstance(content, list) and content else content
    if not isinstance(table, dict) or sorted(table.values(), key=str) != sorted(
        range(expected), key=str
    ):
        raise DataError(
            f"{path}: expected the authors' [answer -> index, index -> answer] with the indices "
            f"0 to {expected - 1}"
        )
    return tuple(sorted(table, key=table.__getitem__))


def as_checkpoint(
    official: OfficialModel, vocabulary: Vocabulary, splits: list[str], name: str
) -> Checkpoint:
    return Checkpoint(
        config=settings(official, name).model_dump(mode="json"),
        vocabulary=vocabulary.to_json(),
        vocabulary_digest=vocabulary.digest,
        sizes=asdict(official.sizes),
        trained_on=[
            {"dataset": "vqa_v2", "split": split, "questions": 0, "digest": "", "content": ""}
            for split in splits
        ],
        model=official.state,
    )


def largest_difference(model: MCAN, path: Path) -> float:
    """Largest absolute difference to the recorded logits."""
    try:
        with np.load(path, allow_pickle=False) as recorded:
            features, question, logits = (
                torch.from_numpy(recorded[name]) for name in ("img_feat", "ques_ix", "logits")
            )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not an .npz with img_feat, ques_ix and logits") from error
    sizes = (
        features.shape[-1:] == model.image_encoder.projection.weight.shape[1:],
        features.dim() == 3,
        question.dim() == 2,
        logits.shape == (len(features), model.classifier.out_features),
        len(question) == len(features),
        int(question.min()) >= 0
        and int(question.max()) < model.question_encoder.embedding.num_embeddings,
    )
    if not all(sizes):
        shapes = ", ".join(str(tuple(t.shape)) for t in (features, question, logits))
        raise DataError(f"{path}: img_feat, ques_ix and logits {shapes} do not fit the network")
    # The reference marks padding by zeros; here each sample has just its rows.
    regions = Ragged.of([rows[rows.abs().sum(1) > 0] for rows in features])
    words = Ragged.of([ids[ids != 0] for ids in question.long()])
    with torch.inference_mode():
        ours = model(words, ImageInput(regions=regions))
    return float((ours - logits).abs().max())


if __name__ == "__main__":
    command(main)
