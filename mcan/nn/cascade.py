"""Deep co-attention: MCA layers in cascade (Yu et al. 2019, sections 3.2, 4.2, figures 4, 5)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mcan.nn.units import (
    AttentionRecord,
    AttentionUnit,
    GuidedAttentionUnit,
    SelfAttentionUnit,
    SelfGuidedAttentionUnit,
)
from mcan.ragged import Ragged

UnitBuilder = Callable[[int, int, int, float, str], AttentionUnit]

MCA_LAYERS: dict[str, tuple[UnitBuilder | None, UnitBuilder]] = {
    "id_ga": (None, GuidedAttentionUnit),
    "sa_ga": (SelfAttentionUnit, GuidedAttentionUnit),
    "sa_sga": (SelfAttentionUnit, SelfGuidedAttentionUnit),
}
"""The unit for the question Y (None: identity) and the unit for the image X of each MCA layer."""

CASCADES = ("stacking", "encoder_decoder")


class Cascade(nn.Module):
    """L MCA layers on the question Y (T_y, d) and the image X (T_x, d).

    - `stacking`: layer l guides X by the Y of the same layer l (eq. 8-9);
    - `encoder_decoder`: all question layers first; their last state guides every image layer (eq.
      10).

    `depth` L >= 1, `question_depth` the number of question layers where it differs (encoder-decoder
    only), `size` d, `heads` h, `inner` the feed-forward width. Raises `ValueError` for an unknown
    layer or cascade and for unequal depths in a stack.
    """

    def __init__(
        self,
        kind: str,
        mca_layer: str,
        depth: int,
        size: int,
        heads: int,
        inner: int,
        dropout: float,
        similarity: str = "scaled_dot",
        question_depth: int | None = None,
    ) -> None:
        super().__init__()
        if kind not in CASCADES:
            raise ValueError(f"cascade {kind!r} is not one of {', '.join(CASCADES)}")
        if mca_layer not in MCA_LAYERS:
            raise ValueError(f"mca_layer {mca_layer!r} is not one of {', '.join(MCA_LAYERS)}")
        question_depth = depth if question_depth is None else question_depth
        if min(depth, question_depth) < 1:
            raise ValueError("a cascade needs at least one layer")
        if kind == "stacking" and question_depth != depth:
            raise ValueError(f"stacking {depth} image layers on {question_depth} question layers")
        self.kind = kind
        question_unit, image_unit = MCA_LAYERS[mca_layer]
        numbers = (size, heads, inner, dropout, similarity)
        self.question_units = nn.ModuleList(
            question_unit(*numbers) for _ in range(question_depth) if question_unit is not None
        )
        self.image_units = nn.ModuleList(image_unit(*numbers) for _ in range(depth))

    def forward(
        self, question: Ragged, image: Ragged, record: AttentionRecord | None = None
    ) -> tuple[Ragged, Ragged]:
        """The attended question and image; `record` receives the attention weights of every
        sublayer.
        """
        states = [question]
        for level, unit in enumerate(self.question_units):
            states.append(unit(states[-1], states[-1], record, f"question.{level}"))
        for level, unit in enumerate(self.image_units):
            stacked = self.kind == "stacking" and len(states) > 1
            guide = states[level + 1] if stacked else states[-1]
            image = unit(image, guide, record, f"image.{level}")
        return states[-1], image
