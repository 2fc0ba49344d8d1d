"""The authors' state dictionary (mcan-vqa, 2019) as this project's: names, sizes, LayerNorm.

d width, E embedding, g glimpses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mcan.nn.mcan import ModelSizes

_LINEAR = ("weight", "bias")
_ATTENTION = {"query": "linear_q", "key": "linear_k", "value": "linear_v", "output": "linear_merge"}
_MLP = {"0": "fc.linear", "3": "linear"}


@dataclass(frozen=True)
class OfficialModel:
    """`model` holds the keys of the config's model section that shapes decide."""

    model: dict[str, Any]
    sizes: ModelSizes
    state: dict[str, Tensor]


def convert_official(state: Mapping[str, Tensor], heads: int) -> OfficialModel:
    """Rename every tensor, fold the LayerNorm factor in, and read the sizes from the shapes.

    The prefix `module.` of DataParallel may be there. `heads` shows in no shape. The authors'
    LayerNorm divides by the unbiased standard deviation: torch's equals it with gains times
    sqrt((d - 1) / d), but for about 4e-6 from where the small constant is added.

    Raises `ValueError`, which names the keys, where some are missing or unknown or shapes clash.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    question_depth, depth = _depth(state, "enc_list"), _depth(state, "dec_list")
    names = dict(_names(question_depth, depth))
    missing = [key for key in names.values() if key not in state]
    unknown = sorted(set(state) - set(names.values()))
    if missing or unknown:
        found = [
            f"{word} {', '.join(keys[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
            for word, keys in (("lacks", missing), ("has the unknown", unknown))
            if keys
        ]
        raise ValueError(f"the state {' and '.join(found)}")
    for key in ("embedding.weight", "img_feat_linear.weight", "proj.weight"):
        if state[key].dim() != 2:
            raise ValueError(f"{key} has the shape {tuple(state[key].shape)}, expected a matrix")
    converted = {ours: _fold(theirs, state[theirs]) for ours, theirs in names.items()}

    tokens, embedding_size = state["embedding.weight"].shape
    hidden_size, feature_size = state["img_feat_linear.weight"].shape
    glimpses, reduction_size = state["attflat_img.mlp.linear.weight"].shape
    answers, fusion_size = state["proj.weight"].shape
    inner = state["backbone.dec_list.0.ffn.mlp.linear.weight"].shape[1]
    model = {
        "hidden_size": hidden_size,
        "heads": heads,
        "depth": depth,
        "question_depth": question_depth,
        "feed_forward_factor": inner // hidden_size,
        "reduction_size": reduction_size,
        "glimpses": glimpses,
        "fusion_size": fusion_size,
        "question": {"embedding_size": embedding_size},
    }
    return OfficialModel(model, ModelSizes(tokens, answers, feature_size), converted)


def _depth(state: Mapping[str, Tensor], part: str) -> int:
    """Layers of the encoder or decoder; at least one: a missing part is named by its keys."""
    found = [re.match(rf"backbone\.{part}\.(\d+)\.", key) for key in state]
    return max((int(match.group(1)) + 1 for match in found if match), default=1)


def _fold(key: str, value: Tensor) -> Tensor:
    if not key.endswith(".a_2"):
        return value
    return value * math.sqrt((len(value) - 1) / len(value))


def _names(question_depth: int, depth: int) -> Iterator[tuple[str, str]]:
    """(our name, the authors' name) of every tensor."""
    yield "question_encoder.embedding.weight", "embedding.weight"
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        yield f"question_encoder.lstm.{name}", f"lstm.{name}"
    yield from _linear("image_encoder.projection", "img_feat_linear")
    for level in range(question_depth):
        ours, theirs = f"cascade.question_units.{level}", f"backbone.enc_list.{level}"
        yield from _unit(ours, theirs, {"self": ("mhatt", "norm1")}, "norm2")
    for level in range(depth):
        ours, theirs = f"cascade.image_units.{level}", f"backbone.dec_list.{level}"
        attentions = {"self": ("mhatt1", "norm1"), "guided": ("mhatt2", "norm2")}
        yield from _unit(ours, theirs, attentions, "norm3")
    for modality, flat in (("question", "attflat_lang"), ("image", "attflat_img")):
        for number, name in _MLP.items():
            yield from _linear(f"{modality}_reduction.mlp.{number}", f"{flat}.mlp.{name}")
        yield from _linear(f"{modality}_reduction.projection", f"{flat}.linear_merge")
    yield from _norm("norm", "proj_norm")
    yield from _linear("classifier", "proj")


def _unit(
    ours: str, theirs: str, attentions: Mapping[str, tuple[str, str]], last_norm: str
) -> Iterator[tuple[str, str]]:
    for kind, (attention, norm) in attentions.items():
        sublayer = f"{ours}.attentions.{kind}"
        for name, linear in _ATTENTION.items():
            yield from _linear(f"{sublayer}.attention.{name}", f"{theirs}.{attention}.{linear}")
        yield from _norm(f"{sublayer}.norm", f"{theirs}.{norm}")
    for number, name in _MLP.items():
        sublayer = f"{ours}.feed_forward"
        yield from _linear(f"{sublayer}.feed_forward.{number}", f"{theirs}.ffn.mlp.{name}")
    yield from _norm(f"{ours}.feed_forward.norm", f"{theirs}.{last_norm}")


def _linear(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    return ((f"{ours}.{name}", f"{theirs}.{name}") for name in _LINEAR)


def _norm(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.weight", f"{theirs}.a_2"
    yield f"{ours}.bias", f"{theirs}.b_2"
