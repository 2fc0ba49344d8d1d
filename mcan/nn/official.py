"""Other state dictionaries under this project's names: the authors' (mcan-vqa, 2019) and old ones.

d width of the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mcan.nn.mcan import ModelSizes

# Patterns and what takes their place, one after the other.
_OFFICIAL_NAMES = (
    (r"^module\.", ""),  # of DataParallel
    (r"^embedding\.", "question_encoder.embedding."),
    (r"^lstm\.", "question_encoder.encoder.lstm."),
    (r"^img_feat_linear\.", "image_encoder.projection."),
    (r"^backbone\.enc_list\.(\d+)\.", r"cascade.question.\1."),
    (r"^backbone\.dec_list\.(\d+)\.", r"cascade.image.\1."),
    (r"\.mhatt1?\.linear_", ".SA.attention."),
    (r"\.mhatt2\.linear_", ".GA.attention."),
    (r"\.attention\.q\.", ".attention.query."),
    (r"\.attention\.k\.", ".attention.key."),
    (r"\.attention\.v\.", ".attention.value."),
    (r"\.attention\.merge\.", ".attention.output."),
    (r"\.ffn\.mlp\.", ".FFN.mlp."),
    (r"\.norm1\.", ".SA.norm."),
    (r"^(cascade\.question.*)\.norm2\.", r"\1.FFN.norm."),
    (r"\.norm2\.", ".GA.norm."),
    (r"\.norm3\.", ".FFN.norm."),
    (r"^attflat_lang\.", "question_reduction."),
    (r"^attflat_img\.", "image_reduction."),
    (r"\.linear_merge\.", ".projection."),
    (r"\.mlp\.fc\.linear\.", ".mlp.0."),
    (r"\.mlp\.linear\.", ".mlp.3."),
    (r"^proj_norm\.", "norm."),
    (r"^proj\.", "classifier."),
    (r"\.b_2$", ".bias"),
)
_OLD_NAMES = (
    (r"^question_encoder\.lstm\.", "question_encoder.encoder.lstm."),
    (r"^question_encoder\.projection\.", "question_encoder.encoder.linear."),
    (r"^stem\.", "image_encoder.stem."),
    (r"^cascade\.(question|image)_units\.", r"cascade.\1."),
    (r"\.attentions\.self\.", ".SA."),
    (r"\.attentions\.guided\.", ".GA."),
    (r"\.feed_forward\.feed_forward\.", ".FFN.mlp."),
    (r"\.feed_forward\.norm\.", ".FFN.norm."),
)


def _rename(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, ours in patterns:
        name = re.sub(pattern, ours, name)
    return name


def map_old_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a checkpoint of format 1 under the names of this version."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        # A similarity of a single head had no head dimension.
        one_head = ".similarity." in name and value.dim() == 2
        renamed[_rename(name, _OLD_NAMES)] = value[None] if one_head else value
    return renamed


@dataclass(frozen=True)
class OfficialModel:
    """`model` holds the keys of the config's model section that the shapes decide."""

    model: dict[str, Any]
    sizes: ModelSizes
    state: dict[str, Tensor]


def convert_official(state: Mapping[str, Tensor], heads: int) -> OfficialModel:
    """Rename every tensor, fold the LayerNorm factor in, and read the sizes from the shapes.

    `heads` does not follow from a shape. The authors' LayerNorm divides by the unbiased standard
    deviation. Torch's equals it with weights times sqrt((d - 1) / d), up to about 4e-6 because of
    where the small constant is added.

    Raises `ValueError` if a tensor that decides a size is missing or not a matrix. Loading the
    result reports all else.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        ours = _rename(name, _OFFICIAL_NAMES)
        if ours.endswith(".a_2"):
            ours = ours.removesuffix("a_2") + "weight"
            value = value * math.sqrt((len(value) - 1) / len(value))
        converted[ours] = value

    def shape(part: str) -> tuple[int, int]:
        found = converted.get(f"{part}.weight")
        if found is None or found.dim() != 2:
            raise ValueError(f"expected a matrix {part}.weight (by this project's names)")
        return found.shape[0], found.shape[1]

    def depth(side: str) -> int:
        found = (re.match(rf"cascade\.{side}\.(\d+)\.", name) for name in converted)
        return max((int(match[1]) + 1 for match in found if match), default=1)

    tokens, embedding_size = shape("question_encoder.embedding")
    hidden_size, feature_size = shape("image_encoder.projection")
    glimpses, reduction_size = shape("image_reduction.mlp.3")
    answers, fusion_size = shape("classifier")
    model = {
        "hidden_size": hidden_size,
        "heads": heads,
        "depth": depth("image"),
        "question_depth": depth("question"),
        "feed_forward_factor": shape("cascade.image.0.FFN.mlp.3")[1] // hidden_size,
        "reduction_size": reduction_size,
        "glimpses": glimpses,
        "fusion_size": fusion_size,
        "question": {"embedding_size": embedding_size},
    }
    return OfficialModel(model, ModelSizes(tokens, answers, feature_size), converted)
