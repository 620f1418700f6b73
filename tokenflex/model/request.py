"""What a call asks of the levels, read before anything runs: what is a level, what a budget, and what a misspelling."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tokenflex.contracts import ComponentConfig, Policy
from tokenflex.contracts.levels import read_levels
from tokenflex.contracts.numbers import integer, real
from tokenflex.errors import InputError
from tokenflex.hosts import stock
from tokenflex.policies.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    Level = int | str | Tensor | np.ndarray | Sequence[int | str] | None
    Budgets = ComponentConfig | float | Mapping[str, Any] | None
else:
    Level = Budgets = Any  # whatever comes is read here, and refused in this library's own words

OWN = ("level", "budget", "escalate", "objective", "align")
"""Keywords that a FlexModel takes besides what its host takes."""
RAW = ("images", "image", "text", "texts", "prompt", "videos")
"""Keywords of processors."""
LIMITS = tuple(field.name for field in fields(Budget))
ALIKE = 0.75
"""How much a name must be like one of ours to be taken for it; 1 is the same."""


def check(flex: Any, names: Iterable[str], level: Level = None, budget: Budgets = None) -> None:
    """Refuse a call before anything runs.

    Args:
        flex: the model that is called.
        names: of the inputs and options for its host.
        level, budget: as for `FlexModel.prepare`.

    Raises:
        InputError: a name is nearly one of ours and none of the host's, the level isn't one, the budget isn't one or
            limits nothing, or both are given.
        ConfigError: the budget has a setting that can't be honoured.
    """
    for name in names:
        _refuse_misspelt(flex, name)
        if name in RAW and not _is_known(flex, name):
            raise InputError(
                f"{name}= is for the processor, and the model takes what that makes: "
                "inputs = processor(images=..., text=..., return_tensors='pt'), then flex.generate(**inputs)."
            )
    read(level, budget, flex.compressor.num_levels)


def read(level: Level, budget: Budgets, num_levels: int) -> tuple[int | tuple[int, ...] | None, Policy | None]:
    """(level for all images or levels per image, policy instead of the assembly's own); None where nothing is asked.

    Raises:
        InputError, ConfigError: as `check`.
    """
    levels = None if level is None else read_levels(level, num_levels)
    if budget is None:
        return levels, None
    config = read_budget(budget)
    if isinstance(config, Budget) and not config.limits:
        raise InputError(
            f"budget={budget!r:.200} limits nothing; give tokens, ratio, weight, floor or ceiling, e.g. "
            "Budget(ratio=0.3). Budget(ratio=1.0) allows every level, whatever the model's own policy."
        )
    if level is not None:
        raise InputError(f"level={level!r:.200} forces the level, so the budget has no say; give one of the two.")
    return None, config.build(num_levels=num_levels)


def read_budget(budget: Budgets) -> ComponentConfig:
    """The settings of a policy from what callers write.

    Args:
        budget: those settings, ``Budget(...)`` or another policy's; a float, which is a ratio; or a mapping with the
            settings of a ``Budget``.

    Raises:
        InputError: it is something else.
        ConfigError: a setting can't be honoured.
    """
    if isinstance(budget, ComponentConfig):
        owner = getattr(type(budget), "owner", None)
        if owner is not None and issubclass(owner, Policy):
            return budget
    elif isinstance(budget, Mapping):
        return Budget.from_dict(budget)
    elif (ratio := real(budget)) is not None and integer(budget) is None:
        return Budget(ratio=ratio)
    hint = "a whole number could mean tokens or a ratio: write Budget(tokens=...) or Budget(ratio=...)"
    raise InputError(
        f"budget={budget!r:.200} ({type(budget).__name__}) is no budget; "
        f"{hint if integer(budget) is not None else 'use the settings of a policy, as Budget(ratio=0.3), or a ratio'}."
    )


def _refuse_misspelt(flex: Any, name: str) -> None:
    like = difflib.get_close_matches(name.lower(), OWN, n=1, cutoff=ALIKE)
    if not (like or name in LIMITS) or _is_known(flex, name):
        return
    if name in LIMITS:
        raise InputError(f"{name}= is a setting of the budget; write budget=Budget({name}=...).")
    if name == "escalate":
        raise InputError("escalate= isn't taken here: only generate() writes answers.")
    if name == "align":
        raise InputError("align= isn't taken here: only forward() gives outputs per position.")
    raise InputError(f"{name}= is nothing that the model takes. Did you mean {like[0]}=?")


def _is_known(flex: Any, name: str) -> bool:
    """Whether the host's forward or generate, its generation options or its images have an input of that name."""
    host = stock.base_of(flex.host)
    calls = [call for call in (getattr(host, "forward", None), getattr(host, "generate", None)) if call is not None]
    named = any(name in inspect.signature(call).parameters for call in calls)
    options = getattr(host, "generation_config", None)
    return named or name in flex.adapter.encoder_inputs or (options is not None and hasattr(options, name))
