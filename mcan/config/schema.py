"""The typed config: every key, its unit, its range, its default.

A key is `FREE` if it says where a run reads and writes, what it runs on, or how often it logs,
checkpoints and evaluates. The evaluated split, the metric and the precision are not free: they
decide which checkpoint is the best one and what a table reports.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from mcan.engine.losses import LOSSES
from mcan.engine.optimizers import OPTIMIZERS
from mcan.engine.schedules import Plateau, Schedule
from mcan.evaluation.metrics import METRICS
from mcan.nn.attention import SIMILARITIES
from mcan.nn.cascade import CASCADES, MCA_LAYER_MEANINGS
from mcan.nn.encoders import QUESTION_ENCODERS
from mcan.section import FREE, Fraction, OneOf, PositiveFloat, PositiveInt, Section

SCHEMA_VERSION = 2
"""Raised if a default changes, so that the identity of a run that relies on it changes too."""


ADDED_KEYS: dict[str, Any] = {
    "data.limit": None,
    "train.max_steps": None,
    "train.init_from": None,
    "train.freeze": [],
    "optimizer.groups": [],
    "evaluation.best_by": "overall",
}
"""Keys younger than this version: at these values, in JSON, they leave the identity of a run as it
was."""


class DataConfig(Section):
    """Which data is read, and how."""

    prepared: Annotated[str, FREE]
    """Folder made by `data/<dataset>/prepare.py`."""
    train: tuple[str, ...] = Field(("train",), min_length=1)
    """Splits trained on, read one after the other as one dataset."""
    evaluate: str | None = "val"
    """Split evaluated during training; null for none."""
    images: Annotated[tuple[str, ...], FREE] = Field(min_length=1)
    """Image stores (region features or pixels); an image is looked up in each, in this order."""
    grid: Annotated[tuple[str, ...], FREE] = ()
    """Stores of grid features whose rows are appended after the regions; empty for none."""
    limit: PositiveInt | None = None
    """Only the first this many questions of every split that is read; null reads all."""
    max_tokens: PositiveInt | None = None
    """Questions are cut after this many words (reference: 14 for VQA v2); null keeps all."""
    residency: Annotated[Literal["disk", "memory", "device"], FREE] = "disk"
    """Where image features stay: memory-mapped on disk, read into memory, or held on the device."""
    workers: Annotated[int, FREE] = Field(0, ge=0)
    """Processes that prepare batches; 0 prepares them in the training process."""

    def contradictions(self) -> Iterator[str]:
        if self.residency == "device" and self.workers:
            yield "{residency} cannot be combined with {workers}; use 0 workers"


class WordVectorsConfig(Section):
    """Pretrained word vectors for the embedding (GloVe, word2vec or fastText)."""

    path: Annotated[str, FREE]
    """File: .txt, .vec, .gz or .zip."""
    unknown: Literal["zero", "random"] = "zero"
    """Rows of words without a vector: zeros (the reference) or random."""
    frozen: bool = False
    """Keep the vectors fixed during training."""


class QuestionConfig(Section):
    """Question encoder (paper section 4.1)."""

    embedding_size: PositiveInt = 300
    """Width of the word embedding."""
    word_vectors: WordVectorsConfig | None = None
    """Pretrained word vectors; null starts the embedding at random."""
    encoder: Annotated[str, OneOf(QUESTION_ENCODERS)] = "lstm"
    """From embedded words to features of the model's width."""


class StemConfig(Section):
    """Convolutional stem for pixels: one 3 x 3 convolution, norm and ReLU per entry."""

    channels: tuple[PositiveInt, ...] = Field((32, 64, 128, 128), min_length=1)
    """Output channels of each layer."""
    strides: tuple[Annotated[int, Field(ge=1, le=2)], ...] = (2, 2, 2, 2)
    """Stride of each layer; the cells of the last map are the regions."""
    coordinates: bool = False
    """Give every layer the row and the column of each value as two further channels (CoordConv)."""

    def contradictions(self) -> Iterator[str]:
        if len(self.channels) != len(self.strides):
            yield "{channels} and {strides} must have equally many items, one per layer"


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

    def contradictions(self) -> Iterator[str]:
        if self.input == "pixels" and self.boxes:
            yield "{boxes} cannot be combined with {input}; only regions have boxes"


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
    mca_layer: Annotated[str, OneOf(MCA_LAYER_MEANINGS)] = "sa_sga"
    """Units of each layer: ID(Y)-GA(X,Y), SA(Y)-GA(X,Y) or SA(Y)-SGA(X,Y) (paper figure 4)."""
    cascade: Annotated[str, OneOf(CASCADES)] = "encoder_decoder"
    """How layers are cascaded (paper figure 5)."""
    feed_forward_factor: PositiveInt = 4
    """Width of the feed-forward layer in units of d."""
    similarity: Annotated[str, OneOf(SIMILARITIES)] = "scaled_dot"
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

    def contradictions(self) -> Iterator[str]:
        if self.hidden_size % self.heads:
            yield "{hidden_size} is not divisible by {heads}"
        if self.question_depth is not None:
            if self.cascade == "stacking" and self.question_depth != self.depth:
                yield "{question_depth} differs from {depth}, which {cascade} does not allow"
            if self.mca_layer == "id_ga":
                yield "{question_depth} is set, but {mca_layer} has no question layers"
        if self.image.position_encoding and self.hidden_size % 4:
            yield "{hidden_size} is not divisible by 4, which {image.position_encoding} needs"
        if self.question.encoder == "positional" and self.hidden_size % 2:
            yield "{hidden_size} is odd, but {question.encoder} needs it even"


class GroupConfig(Section):
    """Parameters with a learning rate of their own."""

    match: str
    """Pattern of parameter names, such as classifier*; the first group that matches counts."""
    lr: PositiveFloat
    """Base learning rate of these parameters; the schedule multiplies it too."""


class OptimizerConfig(Section):
    """Parameter updates."""

    name: Annotated[str, OneOf(OPTIMIZERS)] = "adam"
    """Update rule."""
    lr: PositiveFloat = 1e-4
    """Base learning rate; the schedule multiplies it."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    """Decay of the first and second moment."""
    eps: PositiveFloat = 1e-9
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    """L2 penalty (adam) or decoupled decay (adamw); biases and norms are left out."""
    groups: tuple[GroupConfig, ...] = ()
    """Learning rates of parts of the network: a list of `match` and `lr`."""


class InitFromConfig(Section):
    """Another run's weights as the start of this one."""

    checkpoint: str
    """Run folder, .pt file or exported folder; words and answers are matched by their text."""
    partial: bool = False
    """Load what fits by name and shape; else a missing tensor, or one of another shape, is an
    error."""


class TrainConfig(Section):
    """The training loop."""

    epochs: PositiveInt = 13
    """Passes over the training splits. `--resume` accepts a larger number if the learning rates of
    the steps done so far do not depend on it (plateau, but not cosine). The evaluation at the
    earlier end stays, also between two that `evaluate_every` asks for."""
    max_steps: PositiveInt | None = None
    """Updates after which training ends before its last epoch, with an evaluation and a checkpoint;
    the schedule stays that of all epochs."""
    batch_size: PositiveInt = 64
    """Questions per update, over all processes and accumulation steps together."""
    accumulation: PositiveInt = 1
    """Micro-batches into which each process divides its part of a batch, to save memory."""
    drop_last: bool = True
    """Leave out the last incomplete batch of an epoch (the reference does)."""
    init_from: InitFromConfig | None = None
    """Checkpoint that the weights start from; null starts at random."""
    freeze: tuple[str, ...] = ()
    """Patterns of names of parameters that do not learn, such as question_encoder.*; [] lets all
    learn."""
    loss: Annotated[str, OneOf(LOSSES)] = "bce_sum"
    """Loss on the soft scores of answers."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the whole gradient; null does not clip."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 runs the forward pass under autocast; weights stay float32."""
    compile: bool = False
    """Compile the network with torch.compile, once for each of a few padded lengths. On a CPU that
    takes minutes and seldom pays."""
    rows: Annotated[Literal["auto", "padded", "packed"], FREE] = "auto"
    """Layout of rows: padded to (B, n, d), or packed, real rows only, several times as fast on a
    CPU. auto is packed on a CPU unless `compile` is true, and padded elsewhere. A run records the
    choice and keeps it; eval.py chooses again."""
    device: Annotated[str, FREE] = Field("auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    """auto takes a GPU if there is one; cuda:1 the second of those that torch sees."""
    deterministic: Literal[False, "warn", True] = "warn"
    """Deterministic kernels on a GPU: true requires them, warn uses them where torch has them, and
    false uses the fastest ones. Only true guarantees bit-exact resume on a GPU: with warn, torch
    prints a warning and runs kernels without a deterministic form, such as attention's gradient."""
    evaluate_every: Annotated[PositiveInt, FREE] = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    log_every: Annotated[PositiveInt, FREE] = 50
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: Annotated[PositiveInt | None, FREE] = None
    """Steps between checkpoints inside an epoch; null writes at the end of each epoch only."""
    keep_last: Annotated[PositiveInt, FREE] = 1
    """Newest checkpoints kept, besides the best one."""

    def contradictions(self) -> Iterator[str]:
        if self.accumulation > self.batch_size:
            yield "{accumulation} is more than {batch_size}"
        if self.compile and self.rows == "packed":
            yield "{compile} cannot be combined with {rows}; compiling needs padded rows"


class EvaluationConfig(Section):
    """How predictions are made and scored."""

    metric: Annotated[str, OneOf(METRICS)] | None = None
    """How answers are scored; null takes the metric that the prepared dataset names."""
    best_by: str = "overall"
    """Number of metrics.json that decides which checkpoint is the best one: overall, or for example
    per_answer_type.number. The higher the better."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 predicts under autocast."""
    batch_size: Annotated[PositiveInt | None, FREE] = None
    """Questions per forward pass; null: 64 on a CPU, 256 elsewhere."""


class Config(Section):
    """One run."""

    name: Annotated[str, FREE] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's folder below `runs`."""
    runs: Annotated[str, FREE] = "runs"
    """Folder that holds run folders."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of initialisation, order and dropout."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Schedule = Plateau()
    """`name: plateau` (the reference's) or `name: cosine`."""
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def contradictions(self) -> Iterator[str]:
        if getattr(self.schedule, "warmup_epochs", 0) > self.train.epochs:
            yield "{schedule.warmup_epochs} is more than {train.epochs}; state both"
        if self.data.grid and self.model.image.input == "pixels":
            yield "{data.grid} adds to regions, not to {model.image.input}"
