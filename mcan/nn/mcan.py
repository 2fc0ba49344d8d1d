"""MCAN: encoders, deep co-attention, reduction, fusion, classifier (Yu et al. 2019, figure 6).

B samples, n rows of the longest, d width, A answers. Rows are (B, n, d) or (T, d), see `mcan.rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mcan.batch import MAX_SHAPES, Image, Question
from mcan.nn.attention import Record, masked_softmax
from mcan.nn.cascade import NORM_EPS, Cascade, mlp
from mcan.nn.encoders import ImageEncoder, QuestionEncoder
from mcan.rows import Rows


class AttentionalReduction(nn.Module):
    """The rows of each sample -> one vector of width `out` (section 4.3, eq. 11).

    α = softmax(MLP(x)) over a sample's rows, one α per glimpse; Linear([α_1 x; ...; α_G x]).
    """

    def __init__(self, size: int, hidden: int, glimpses: int, dropout: float, out: int) -> None:
        super().__init__()
        self.mlp = mlp(size, hidden, glimpses, dropout)
        self.projection = nn.Linear(size * glimpses, out)
        self.record: Record | None = None  # set by mcan.explain.weights.record_attention

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        scores = rows.pad(self.mlp(x)).transpose(1, 2)  # (B, glimpses, n)
        weights = masked_softmax(scores, rows.mask[:, None], rows.some_empty)
        if self.record is not None:
            self.record(weights, None, rows.mask)
        glimpses = weights.to(x.dtype) @ rows.pad(x)  # (B, glimpses, d)
        out: Tensor = self.projection(glimpses.flatten(1))
        return out


class MCAN(nn.Module):
    """Question and image -> logits (B, A). The parts are passed in built, see `mcan.build`."""

    def __init__(
        self,
        question_encoder: QuestionEncoder,
        image_encoder: ImageEncoder,
        cascade: Cascade,
        question_reduction: AttentionalReduction,
        image_reduction: AttentionalReduction,
        fusion_size: int,
        answers: int,
    ) -> None:
        super().__init__()
        self.question_encoder = question_encoder
        self.image_encoder = image_encoder
        self.cascade = cascade
        self.question_reduction = question_reduction
        self.image_reduction = image_reduction
        self.norm = nn.LayerNorm(fusion_size, eps=NORM_EPS)
        self.classifier = nn.Linear(fusion_size, answers)

    def forward(self, question: Question, image: Image) -> Tensor:
        y, y_rows = self.question_encoder(question)
        x, x_rows = self.image_encoder(image)
        if image.of_question is not None:  # questions share images up to here
            x, x_rows = x_rows.take(x, image.of_question)
        y, x = self.cascade(y, x, y_rows, x_rows)
        fused = self.question_reduction(y, y_rows) + self.image_reduction(x, x_rows)  # eq. 12
        logits: Tensor = self.classifier(self.norm(fused))
        return logits


@dataclass(frozen=True)
class ModelSizes:
    """Sizes that the data decides: number of tokens and answers, widths of region and grid rows."""

    tokens: int
    answers: int
    feature_size: int | None = None
    grid_size: int | None = None


def compile_in_place(model: nn.Module, backend: Any = "inductor") -> None:
    """Compile calls of `model`: once for each shape of `PaddedLengths`, in each mode."""
    # Two modes, and batches of other sizes: the last one of an epoch, those of an evaluation.
    torch._dynamo.config.cache_size_limit = 8 * MAX_SHAPES  # torch 2.6 has no `recompile_limit`
    # torch traces an LSTM whose input needs no gradient in a form that has none for its weights.
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    torch._dynamo.config.allow_rnn = all(each.weight.requires_grad for each in embeddings)
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    model.compile(backend=backend, dynamic=False)
