"""TokenFlex: a large multimodal model chooses how many visual tokens it needs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from tokenflex import confidences, contracts, errors, hosts, images, policies, routers, scalers, voters
    from tokenflex.composed import compose
    from tokenflex.contracts import Decision
    from tokenflex.conversations import Conversation
    from tokenflex.model import Budget, Escalate, Fade, FlexConfig, FlexModel, calibrate, load_parts, pinned, wrap

    evaluation: ModuleType
    serving: ModuleType
    testing: ModuleType
    training: ModuleType

__version__ = "0.2.0"

__all__ = [
    "Budget",
    "Conversation",
    "Decision",
    "Escalate",
    "Fade",
    "FlexConfig",
    "FlexModel",
    "calibrate",
    "compose",
    "confidences",
    "contracts",
    "errors",
    "evaluation",
    "hosts",
    "images",
    "load_parts",
    "pinned",
    "policies",
    "routers",
    "scalers",
    "serving",
    "testing",
    "training",
    "voters",
    "wrap",
]

_HOMES = {
    "Budget": "tokenflex.model",
    "Conversation": "tokenflex.conversations",
    "Decision": "tokenflex.contracts",
    "Escalate": "tokenflex.model",
    "Fade": "tokenflex.model",
    "FlexConfig": "tokenflex.model",
    "FlexModel": "tokenflex.model",
    "calibrate": "tokenflex.model",
    "compose": "tokenflex.composed",
    "load_parts": "tokenflex.model",
    "pinned": "tokenflex.model",
    "wrap": "tokenflex.model",
}


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that ``import tokenflex`` stays light."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in __all__:
        return import_module(f"tokenflex.{name}")
    raise AttributeError(f"module 'tokenflex' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


import_module("tokenflex.auto").register_when_loaded()
