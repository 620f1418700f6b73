"""``FlexModel``: a host and its parts as one transformers model."""

from tokenflex.model.budget import Budget, calibrate
from tokenflex.model.config import FlexConfig
from tokenflex.model.escalation.settings import Escalate
from tokenflex.model.flex import Encoded, FlexModel
from tokenflex.model.loading import load_parts, wrap
from tokenflex.model.pins import pinned
from tokenflex.policies.fade import Fade

__all__ = [
    "Budget",
    "Encoded",
    "Escalate",
    "Fade",
    "FlexConfig",
    "FlexModel",
    "calibrate",
    "load_parts",
    "pinned",
    "wrap",
]
