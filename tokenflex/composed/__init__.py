"""Custom large multimodal models: any vision encoder, a projector, any causal language model."""

from tokenflex.composed.build import Composed, compose
from tokenflex.composed.config import ComposedConfig
from tokenflex.composed.model import ComposedForConditionalGeneration

__all__ = ["Composed", "ComposedConfig", "ComposedForConditionalGeneration", "compose"]
