"""Training on transformers' ``Trainer``: stages, objectives, data."""

from tokenflex.training.collate import FlexCollator
from tokenflex.training.data import ChatDataset, read_rows
from tokenflex.training.objectives import LanguageObjective, MultiGranularityObjective, RGLFObjective
from tokenflex.training.stages import STAGES, Stage
from tokenflex.training.trainer import (
    FlexTrainer,
    FlexTrainingArguments,
    MultiGranularityTrainer,
    RGLFTrainer,
)

__all__ = [
    "STAGES",
    "ChatDataset",
    "FlexCollator",
    "FlexTrainer",
    "FlexTrainingArguments",
    "LanguageObjective",
    "MultiGranularityObjective",
    "MultiGranularityTrainer",
    "RGLFObjective",
    "RGLFTrainer",
    "Stage",
    "read_rows",
]
