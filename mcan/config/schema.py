"""The typed config: every key, its unit, its range, its default.

Sections are frozen and refuse unknown keys. A validator that sees a contradiction between fields
names them all. Nothing below the entry points and the builders receives these objects: parts take
numbers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mcan.config.section import ContradictionError, Fraction, PositiveFloat, PositiveInt, Section


class DataConfig(Section):
    """What is read, and how."""

    prepared: str
    """Folder made by `data/<dataset>/prepare.py`."""
    train: tuple[str, ...] = Field(("train",), min_length=1)
    """Splits trained on, read one after the other as one dataset."""
    evaluate: str | None = "val"
    """Split evaluated during training; null for none."""
    images: tuple[str, ...] = Field(min_length=1)
    """Image stores (region features or pixels); an image is looked up in each, in this order."""
    grid: tuple[str, ...] = ()
    """Stores of grid features whose rows are appended after the regions; empty for none."""
    max_tokens: PositiveInt | None = None
    """Questions are cut after this many words (reference: 14 for VQA v2); null keeps all."""
    residency: Literal["disk", "memory", "device"] = "disk"
    """Where image features stay: memory-mapped on disk, read into memory, or held on the device."""
    workers: int = Field(0, ge=0)
    """Processes that prepare batches; 0 prepares them in the training process."""


class WordVectorsConfig(Section):
    """Pretrained word vectors for the embedding (GloVe, word2vec or fastText, as text or .npy)."""

    path: str
    """File: .txt, .vec, .gz, .zip, or .npy with a word list of the same name and suffix .txt."""
    unknown: Literal["zero", "random"] = "zero"
    """Rows of words without a vector: zeros (the reference) or random."""
    frozen: bool = False
    """Keep the vectors as they are instead of fine-tuning them."""


class QuestionConfig(Section):
    """Question encoder (paper section 4.1)."""

    embedding_size: PositiveInt = 300
    """Width of the word embedding."""
    word_vectors: WordVectorsConfig | None = None
    """Pretrained word vectors; null starts the embedding at random."""
    encoder: Literal["lstm", "positional"] = "lstm"
    """One-layer LSTM, or a linear map with sinusoidal positional encoding."""


class StemConfig(Section):
    """Convolutional stem for pixels: one 3 x 3 convolution, norm and ReLU per entry."""

    channels: tuple[PositiveInt, ...] = Field((32, 64, 128, 128), min_length=1)
    """Output channels of each layer."""
    strides: tuple[Annotated[int, Field(ge=1, le=2)], ...] = (2, 2, 2, 2)
    """Stride of each layer; the cells of the last map are the regions."""
    coordinates: bool = False
    """Give every layer the row and the column of each value as two further channels (CoordConv)."""

    @model_validator(mode="after")
    def _equal_lengths(self) -> StemConfig:
        if len(self.channels) != len(self.strides):
            raise ContradictionError(
                self, "{channels} and {strides} must have equally many items, one per layer"
            )
        return self


class ImageConfig(Section):
    """Image encoder (paper section 4.1)."""

    input: Literal["regions", "pixels"] = "regions"
    """Precomputed feature rows, or pixels with the convolutional stem."""
    boxes: bool = False
    """Embed the five box numbers (normalised corners and area) and append them to the features."""
    box_embedding_size: PositiveInt = 2048
    """Width of the box embedding."""
    position_encoding: bool = False
    """Add a sinusoidal 2-D position encoding to grid cells (and to the cells of the stem)."""
    stem: StemConfig = StemConfig()
    """Used when `input` is pixels."""

    @model_validator(mode="after")
    def _pixels_have_no_boxes(self) -> ImageConfig:
        if self.input == "pixels" and self.boxes:
            raise ContradictionError(self, "{boxes} contradicts {input}, only regions have boxes")
        return self


class ModelConfig(Section):
    """The network (paper section 4)."""

    hidden_size: PositiveInt = 512
    """Width d of every unit."""
    heads: PositiveInt = 8
    """Attention heads h; each has width d / h."""
    depth: PositiveInt = 6
    """Number L of MCA layers."""
    question_depth: PositiveInt | None = None
    """Question layers of an encoder-decoder, if not L."""
    mca_layer: Literal["id_ga", "sa_ga", "sa_sga"] = "sa_sga"
    """ID(Y)-GA(X,Y), SA(Y)-GA(X,Y) or SA(Y)-SGA(X,Y) (paper figure 4)."""
    cascade: Literal["stacking", "encoder_decoder"] = "encoder_decoder"
    """How layers are cascaded (paper figure 5)."""
    feed_forward_factor: PositiveInt = 4
    """Width of the feed-forward layer in units of d."""
    similarity: Literal["dot", "scaled_dot", "general", "concat", "perceptron"] = "scaled_dot"
    """Similarity of query and key in attention; the paper's is scaled_dot."""
    dropout: Fraction = 0.1
    """Dropout of attention weights, sublayer outputs, feed-forward and reduction."""
    reduction_size: PositiveInt = 512
    """Hidden width of the attentional reduction."""
    glimpses: PositiveInt = 1
    """Glimpses of the attentional reduction, per modality."""
    fusion_size: PositiveInt = 1024
    """Width of the fused feature."""
    question: QuestionConfig = QuestionConfig()
    image: ImageConfig = ImageConfig()

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.hidden_size % self.heads:
            raise ContradictionError(self, "{hidden_size} is not divisible by {heads}")
        if self.question_depth is not None:
            if self.cascade == "stacking" and self.question_depth != self.depth:
                raise ContradictionError(
                    self, "{question_depth} differs from {depth}, which {cascade} does not allow"
                )
            if self.mca_layer == "id_ga":
                raise ContradictionError(
                    self, "{question_depth} contradicts {mca_layer}, which has no question layers"
                )
        if self.image.position_encoding and self.hidden_size % 4:
            raise ContradictionError(
                self, "{hidden_size} is not divisible by 4, which {image.position_encoding} needs"
            )
        if self.question.encoder == "positional" and self.hidden_size % 2:
            raise ContradictionError(
                self, "{hidden_size} is odd, but {question.encoder} needs it even"
            )
        return self


class OptimizerConfig(Section):
    """Parameter updates."""

    name: Literal["adam", "adamw"] = "adam"
    """Adam, or Adam with decoupled weight decay."""
    lr: PositiveFloat = 1e-4
    """Base learning rate; the schedule multiplies it."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    """Decay of the first and second moment."""
    eps: PositiveFloat = 1e-9
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    """L2 penalty (adam) or decoupled decay (adamw); biases and norms are left out."""


class PlateauSchedule(Section):
    """The reference's: warm-up in plateaus, then steps down."""

    name: Literal["plateau"] = "plateau"
    """This kind of schedule."""
    warmup_epochs: int = Field(3, ge=0)
    """k: epochs 1..k run at 1/(k+1), ..., k/(k+1) of the base rate."""
    decay_after: tuple[PositiveInt, ...] = (10, 12)
    """Epochs after which the rate is multiplied by `decay`."""
    decay: float = Field(0.2, gt=0, le=1)
    """Factor of each step down."""

    @model_validator(mode="after")
    def _rising(self) -> PlateauSchedule:
        if any(a >= b for a, b in zip(self.decay_after, self.decay_after[1:], strict=False)):
            raise ContradictionError(self, "{decay_after} must rise from item to item")
        if self.decay_after and self.decay_after[0] < self.warmup_epochs:
            raise ContradictionError(
                self, "{decay_after} starts before {warmup_epochs} have passed"
            )
        return self


class CosineSchedule(Section):
    """Linear warm-up, then half a cosine down."""

    name: Literal["cosine"]
    """This kind of schedule."""
    warmup_epochs: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Length of the linear warm-up in epochs; a fraction is allowed."""
    final: float = Field(0.0, ge=0, le=1)
    """Rate at the end, as a fraction of the base rate."""


class TrainConfig(Section):
    """The loop."""

    epochs: PositiveInt = 13
    """Passes over the training splits."""
    batch_size: PositiveInt = 64
    """Questions per update, over all processes and accumulation steps together."""
    accumulation: PositiveInt = 1
    """Pieces that each process computes its part of the batch in, to save memory."""
    drop_last: bool = True
    """Leave out the last incomplete batch of an epoch (the reference does)."""
    loss: Literal["bce_sum", "bce_mean", "cross_entropy"] = "bce_sum"
    """Binary cross entropy on soft scores (sum over batch and answers, or mean), or cross entropy
    (mean over the batch)."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the whole gradient; null does not clip."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 runs the forward pass under autocast; weights stay float32."""
    compile: bool = False
    """Compile the network with torch.compile."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    evaluate_every: PositiveInt = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    log_every: PositiveInt = 50
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: PositiveInt | None = None
    """Steps between checkpoints inside an epoch; null writes at the end of each epoch only."""
    keep_last: PositiveInt = 1
    """Newest checkpoints kept, next to the best one."""

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        if self.accumulation > self.batch_size:
            raise ContradictionError(self, "{accumulation} is more than {batch_size}")
        return self


class EvaluationConfig(Section):
    """How predictions are made and scored."""

    metric: Literal["exact", "vqa", "vqa_pre2021"] | None = None
    """exact: share of right answers; vqa: the organisers' accuracy since March 2021;
    vqa_pre2021: the one before; null: the one that the prepared dataset names."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 predicts under autocast."""
    batch_size: PositiveInt | None = None
    """Questions per forward pass; null: 64 on a CPU, 256 elsewhere."""


class Config(Section):
    """One run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's folder below `runs`."""
    runs: str = "runs"
    """Folder that holds run folders."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of initialisation, order and dropout."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Annotated[PlateauSchedule | CosineSchedule, Field(discriminator="name")] = (
        PlateauSchedule()
    )
    """`name: plateau` (the reference's) or `name: cosine`."""
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _schedule_fits(self) -> Config:
        if self.schedule.warmup_epochs > self.train.epochs:
            raise ContradictionError(
                self, "{schedule.warmup_epochs} is more than {train.epochs}; state both"
            )
        if self.data.grid and self.model.image.input == "pixels":
            raise ContradictionError(
                self, "{data.grid} contradicts {model.image.input}, grid rows join regions"
            )
        return self
