"""Training on transformers' ``Trainer``: stages, objectives, data."""

from tokenflex.hosts.targets import shifted, target_logits
from tokenflex.renamed import attributes
from tokenflex.training.collate import FlexCollator
from tokenflex.training.data import ChatDataset, read_rows
from tokenflex.training.objectives import LanguageObjective, MultiGranularityObjective, RGLFObjective
from tokenflex.training.router_only import RouterModel
from tokenflex.training.score import score
from tokenflex.training.stages import STAGES, Stage
from tokenflex.training.store import FeedbackStore
from tokenflex.training.stream import ChatStream
from tokenflex.training.trainer import (
    FlexTrainer,
    FlexTrainingArguments,
    MultiGranularityTrainer,
    RGLFTrainer,
)

__all__ = [
    "STAGES",
    "ChatDataset",
    "ChatStream",
    "FeedbackStore",
    "FlexCollator",
    "FlexTrainer",
    "FlexTrainingArguments",
    "LanguageObjective",
    "MultiGranularityObjective",
    "MultiGranularityTrainer",
    "RGLFObjective",
    "RGLFTrainer",
    "RouterModel",
    "Stage",
    "read_rows",
    "score",
    "shifted",
    "target_logits",
]

__getattr__ = attributes(__name__, {"answer_logits": "tokenflex.hosts.targets:target_logits"})
