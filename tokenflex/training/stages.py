"""The four stages of AVG-LLaVA as presets: what trains, at which rate, on which loss.

Published values (arXiv 2410.02745, section 4.1, and its training scripts): one epoch each, AdamW without weight
decay, cosine schedule, warm-up over 3 % of the steps. In the published code the vision tower sits under
``no_grad`` in stage 3; here it is trained, at the published rate, unless its rate is set to 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel

from tokenflex.errors import ConfigError
from tokenflex.model import FlexModel
from tokenflex.training.router_only import RouterModel

Loss = Literal["language", "multi-granularity", "rglf"]
GROUPS = ("vision_tower", "projector", "language_model", "scaler", "router")


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Attributes:
        number: 1 to 4.
        summary: what the stage is for.
        loss: which objective it minimises.
        rates: learning rate per parameter group; groups that aren't named are frozen.
        global_batch: samples per optimizer step in the published run.
    """

    number: int
    summary: str
    loss: Loss
    rates: Mapping[str, float]
    global_batch: int

    def with_rates(self, **rates: float | None) -> "Stage":
        """The same stage with other rates; None keeps a rate, 0 freezes the group.

        Raises:
            ConfigError: no such parameter group, or a negative rate.
        """
        for group, rate in rates.items():
            if group not in GROUPS or (rate is not None and rate < 0):
                raise ConfigError(f"rate {group}={rate}; groups are {', '.join(GROUPS)} and rates are >= 0.")
        merged = {**self.rates, **{group: rate for group, rate in rates.items() if rate is not None}}
        return replace(self, rates={group: rate for group, rate in merged.items() if rate > 0})


STAGES: Mapping[int, Stage] = {
    1: Stage(1, "alignment", "language", {"projector": 1e-3}, 256),
    2: Stage(
        2,
        "visual instruction tuning",
        "language",
        {"vision_tower": 2e-6, "projector": 2e-5, "language_model": 2e-5},
        128,
    ),
    3: Stage(
        3,
        "multi-granularity instruction tuning",
        "multi-granularity",
        {"vision_tower": 2e-5, "projector": 1e-5, "language_model": 1e-5, "scaler": 1e-5},
        128,
    ),
    4: Stage(4, "ranking granularity by LMM feedback", "rglf", {"router": 1e-3}, 128),
}


_FROZEN: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()
"""Of hosts wrapped by PEFT: ids of the parameters that a stage froze although the wrapper trains them."""


def parameter_groups(flex: FlexModel | RouterModel) -> dict[str, tuple[nn.Parameter, ...]]:
    """All parameters by group; ``router`` is router and voter."""
    parts = flex.compressor
    return {
        **(flex.adapter.parameter_groups() if isinstance(flex, FlexModel) else {}),
        "scaler": tuple(parts.scaler.parameters()),
        "router": (*parts.router.parameters(), *parts.voter.parameters(), *parts.policy.parameters()),
    }


def select(flex: FlexModel | RouterModel, stage: Stage) -> list[dict[str, Any]]:
    """Freeze what the stage doesn't train; optimizer groups (``params``, ``lr``) for what it does.

    Inside a host wrapped by PEFT the wrapper's choice of trainable parameters is kept, also over several stages.

    Raises:
        ConfigError: nothing would be trained.
    """
    wrapped = isinstance(flex, FlexModel) and not isinstance(flex.host, PreTrainedModel)
    frozen = _FROZEN.setdefault(flex.host, set()) if isinstance(flex, FlexModel) and wrapped else set[int]()
    chosen: list[dict[str, Any]] = []
    for name, parameters in parameter_groups(flex).items():
        rate = stage.rates.get(name, 0.0)
        own = wrapped and name not in ("scaler", "router")
        for parameter in parameters:
            wanted = not own or parameter.requires_grad or id(parameter) in frozen
            parameter.requires_grad_(rate > 0 and wanted)
            if own and wanted:
                (frozen.discard if rate > 0 else frozen.add)(id(parameter))
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if trained:
            chosen.append({"params": trained, "lr": rate})
    if not chosen:
        raise ConfigError(
            f"stage {stage.number} trains {', '.join(stage.rates) or 'nothing'}, and this model has no trainable "
            "parameters there. Choose parts that can be trained, or another stage."
        )
    return chosen


def frozen_statistics(model: nn.Module) -> tuple[nn.Module, ...]:
    """Modules of batch normalisation, and what is like it, that hold statistics and no parameter that is trained.

    In training mode they would change with every batch, and give other features than in evaluation, though the stage
    freezes the group they are in.
    """
    return tuple(
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        and module.running_mean is not None
        and not any(parameter.requires_grad for parameter in module.parameters())
    )
