"""``FlexModel``: a host and its parts as one transformers model."""

from tokenflex.model.config import FlexConfig
from tokenflex.model.flex import Encoded, FlexModel
from tokenflex.model.loading import load_parts, wrap

__all__ = ["Encoded", "FlexConfig", "FlexModel", "load_parts", "wrap"]
