"""MCAN: encoders, deep co-attention, reduction, fusion, classifier (Yu et al. 2019, figure 6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mcan.batch import ImageInput
from mcan.nn.cascade import Cascade
from mcan.nn.image import ConvStem, ImageEncoder
from mcan.nn.question import QuestionEncoder
from mcan.nn.reduction import AttentionalReduction
from mcan.nn.units import NORM_EPS, AttentionRecord
from mcan.ragged import Ragged

if TYPE_CHECKING:
    from mcan.config.schema import ModelConfig


class MCAN(nn.Module):
    """Question (token ids) and image -> logits (B, A) over the answer vocabulary.

    The parts are given built; `stem` is the convolutional network for pixels, None for region
    features.
    """

    def __init__(
        self,
        question_encoder: QuestionEncoder,
        image_encoder: ImageEncoder,
        cascade: Cascade,
        question_reduction: AttentionalReduction,
        image_reduction: AttentionalReduction,
        fusion_size: int,
        answers: int,
        stem: ConvStem | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.question_encoder = question_encoder
        self.image_encoder = image_encoder
        self.cascade = cascade
        self.question_reduction = question_reduction
        self.image_reduction = image_reduction
        self.norm = nn.LayerNorm(fusion_size, eps=NORM_EPS)
        self.classifier = nn.Linear(fusion_size, answers)

    def forward(
        self, question: Ragged, image: ImageInput, record: AttentionRecord | None = None
    ) -> Tensor:
        """Logits (B, A).

        `question` packs token ids (T,). `record`, if given, receives the weights of every attention
        (`question.0.self`, `image.0.guided`, ... as (B, h, n, m)) and of the reductions
        (`question.reduction`, `image.reduction` as (B, glimpses, L)).
        """
        if self.stem is not None:
            assert image.pixels is not None
            regions, cells = self.stem(image.pixels)
            image = replace(image, regions=regions, cells=cells)
        y, x = self.question_encoder(question), self.image_encoder(image)
        if image.of_question is not None:
            x = x.take(image.of_question)
        # Attention that is recorded is that of the samples alone.
        filled_up = record is None and x.layout.rounded
        if filled_up:
            y, x = y.filled_up(), x.filled_up()
        y, x = self.cascade(y, x, record)
        y_reduced, y_weights = self.question_reduction(y)
        x_reduced, x_weights = self.image_reduction(x)
        if record is not None:
            record["question.reduction"] = y_weights
            record["image.reduction"] = x_weights
        logits: Tensor = self.classifier(self.norm(y_reduced + x_reduced))
        return logits[:-1] if filled_up else logits


@dataclass(frozen=True)
class ModelSizes:
    """Sizes that the data decides: number of tokens and answers, widths of region and grid rows."""

    tokens: int
    answers: int
    feature_size: int | None = None
    grid_size: int | None = None


def build_model(config: ModelConfig, sizes: ModelSizes, vectors: Tensor | None = None) -> MCAN:
    """The one place that reads the model section; `vectors` (tokens, E) starts the embedding."""
    width, image, question = config.hidden_size, config.image, config.question
    stem = None
    feature_size = sizes.feature_size
    if image.input == "pixels":
        stem = ConvStem(image.stem.channels, image.stem.strides, image.stem.coordinates)
        feature_size = image.stem.channels[-1]
    assert feature_size is not None

    def reduction() -> AttentionalReduction:
        return AttentionalReduction(
            width, config.reduction_size, config.glimpses, config.dropout, config.fusion_size
        )

    return MCAN(
        QuestionEncoder(
            sizes.tokens,
            question.embedding_size,
            width,
            question.encoder,
            vectors,
            frozen=question.word_vectors is not None and question.word_vectors.frozen,
        ),
        ImageEncoder(
            feature_size,
            width,
            image.box_embedding_size if image.boxes else None,
            sizes.grid_size,
            image.position_encoding,
        ),
        Cascade(
            config.cascade,
            config.mca_layer,
            config.depth,
            width,
            config.heads,
            config.feed_forward_factor * width,
            config.dropout,
            config.similarity,
            config.question_depth,
        ),
        reduction(),
        reduction(),
        config.fusion_size,
        sizes.answers,
        stem,
    )
