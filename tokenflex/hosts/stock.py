"""The stock transformers model behind a host, and its parameters by what they are for."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from torch import nn


def base_of(host: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return host.get_base_model() if hasattr(host, "get_base_model") else host


def parameter_groups(
    model: Any, vision_tower: Sequence[str], projector: Sequence[str]
) -> Mapping[str, tuple[nn.Parameter, ...]]:
    """``vision_tower``, ``projector`` and, for all the rest, ``language_model``; disjoint and complete.

    Args:
        vision_tower, projector: paths of modules and parameters; a projector inside the tower is the projector's.
    """
    joined = [p for path in projector for p in _parameters(model, path)]
    taken = {id(p) for p in joined}
    tower = [p for path in vision_tower for p in _parameters(model, path) if id(p) not in taken]
    taken |= {id(p) for p in tower}
    rest = tuple(p for p in model.parameters() if id(p) not in taken)
    return {"vision_tower": tuple(tower), "projector": tuple(joined), "language_model": rest}


def _parameters(model: Any, path: str) -> list[nn.Parameter]:
    found = reduce(getattr, path.split("."), model)
    return [found] if isinstance(found, nn.Parameter) else list(found.parameters())
