"""Typed configs: `load_config` reads YAML with bases and overrides, `dump_config` writes it."""

from mcan.config.load import config_from_dict, dump_config, load_config
from mcan.config.schema import (
    Config,
    CosineSchedule,
    DataConfig,
    EvaluationConfig,
    ImageConfig,
    ModelConfig,
    OptimizerConfig,
    PlateauSchedule,
    QuestionConfig,
    StemConfig,
    TrainConfig,
    WordVectorsConfig,
)

__all__ = [
    "Config",
    "CosineSchedule",
    "DataConfig",
    "EvaluationConfig",
    "ImageConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PlateauSchedule",
    "QuestionConfig",
    "StemConfig",
    "TrainConfig",
    "WordVectorsConfig",
    "config_from_dict",
    "dump_config",
    "load_config",
]
