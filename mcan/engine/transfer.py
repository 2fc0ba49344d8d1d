"""Initialise a network with the weights of another run; freeze parts of it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from mcan.engine.checkpoint import Checkpoint
from mcan.errors import ConfigError, RunError, shorten
from mcan.text.vocabulary import Vocabulary

_ROWS = {
    "question_encoder.embedding.weight": "words",
    "classifier.weight": "answers",
    "classifier.bias": "answers",
}
"""Parameters with one row per word or answer; rows are matched by text."""


def transfer(
    source: Checkpoint, model: nn.Module, vocabulary: Vocabulary, partial: bool = False
) -> str:
    """Load the weights of `source` into `model` by name, and return a report.

    Rows of the word embedding and of the classifier are copied to the row of the same word or
    answer; rows of new words and answers keep their initial values. With `partial`, so do tensors
    that are missing in `source` or have another shape; otherwise these raise `RunError`.
    """
    old = Vocabulary.from_json(source.vocabulary, str(source.source))
    entries = {
        "words": (old.tokens, vocabulary.tokens),
        "answers": (old.answers, vocabulary.answers),
    }
    carried: dict[str, str] = {}
    new: list[str] = []
    state = model.state_dict()
    for name, value in state.items():
        given = source.model.get(name)
        if given is None or given.shape[1:] != value.shape[1:]:
            new.append(name)
        elif of := _ROWS.get(name):
            before, now = entries[of]
            carried[of] = _copy_rows(given, before, value, now)
        elif given.shape == value.shape:
            value.copy_(given)
        else:
            new.append(name)
    if new and not partial:
        raise RunError(
            f"{source.source}: missing, or with another shape than in the config: "
            f"{shorten(new, 4)}; train.init_from.partial=true loads only what fits"
        )
    left = sorted(source.model.keys() - (state.keys() - new))
    report = [f"{len(state) - len(new)} of {len(state)} tensors", *map(" ".join, carried.items())]
    report += [f"new: {shorten(new)}"] if new else []
    report += [f"left out: {shorten(left)}"] if left else []
    return f"started from {source.source}: {'; '.join(report)}"


def _copy_rows(given: Tensor, before: Sequence[str], value: Tensor, now: Sequence[str]) -> str:
    """Copy the rows of entries that are in both vocabularies, and report their number."""
    places = {entry: place for place, entry in enumerate(before)}
    common = [(place, places[entry]) for place, entry in enumerate(now) if entry in places]
    to, source = torch.tensor(common, dtype=torch.int64).reshape(-1, 2).unbind(1)
    value[to.to(value.device)] = given[source].to(value)
    return f"{len(common):,} of {len(now):,} carried over"


def inherit(metadata: Checkpoint, source: Checkpoint, resumed: bool) -> None:
    """Add to `metadata` what the weights were trained on before this run.

    `source` is the checkpoint that the run starts from, or its own checkpoint if it is `resumed`.
    """
    metadata.trained_on += [
        split | {"before": True}
        for split in source.trained_on
        if split.get("before") or not resumed
    ]
    if source.question_keys is not None and metadata.question_keys is not None:
        keys = np.union1d(metadata.question_keys.numpy(), source.question_keys.numpy())
        metadata.question_keys = torch.from_numpy(keys)


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters whose names match (`*` matches anything, including dots).

    Raises `ConfigError` for a pattern without a match, or if all parameters are frozen.
    """
    for pattern in patterns:
        matching = [p for name, p in model.named_parameters() if fnmatchcase(name, pattern)]
        if not matching:
            names = shorten((name for name, _ in model.named_parameters()), 6)
            raise ConfigError(
                f"train.freeze: no parameter matches {pattern!r}; parameters: {names}"
            )
        for parameter in matching:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("train.freeze: no parameter is left to train")
