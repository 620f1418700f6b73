"""What is measured: settings of one model, answer lengths, and how often."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig
from tokenflex.errors import ConfigError
from tokenflex.model import Escalate
from tokenflex.profiling.mix import GivenLevels, levels_for, require_share

ENOUGH = 20
"""Runs from which on a 95th percentile says something."""

Kind = Literal["vanilla", "level", "routed", "budget", "mix", "escalate"]


@dataclass(frozen=True)
class MeasuredSetting:
    """One way to run the model.

    Attributes:
        name: as tables show it.
        kind: ``vanilla``, the plain host on the processor's full inputs; ``level``, forced, without the router;
            ``routed``; ``budget``, routed within a budget; ``mix``, the router run in full and its choice replaced
            by levels that together keep a share of the batch's tokens; or ``escalate``, coarse answers and finer ones
            where the model is unsure.
        level: of kind ``level``.
        budget: of kind ``budget``: settings of the policy; of kind ``mix`` once it stands before a batch, see `on`.
        share: of kind ``mix``: of the visual tokens.
        escalate: of kind ``escalate``.
    """

    name: str
    kind: Kind
    level: int | None = None
    budget: ComponentConfig | None = None
    share: float | None = None
    escalate: Escalate | None = None

    @property
    def decides(self) -> bool:
        """Whether it is asked, before anything is answered, which levels are chosen."""
        return self.kind in ("routed", "budget", "mix")

    def on(self, counts: Int[Tensor, "images levels"]) -> "MeasuredSetting":
        """The setting before a batch whose levels cost so many tokens: a mix gets its levels, see `levels_for`."""
        if self.share is None:
            return self
        totals = counts.sum(0)
        levels = levels_for(self.share, (totals / totals[-1]).tolist(), len(counts))
        return replace(self, budget=GivenLevels.Config(levels=levels))

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of this setting for `FlexModel.generate` and `FlexModel.decide`."""
        arguments = {"level": self.level, "budget": self.budget, "escalate": self.escalate}
        return {name: value for name, value in arguments.items() if value is not None}


VANILLA = MeasuredSetting("vanilla", "vanilla")


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        levels: forced levels, negative counts from the finest; coarsest and finest always join. None: all.
        budgets: settings of the budget policy, each measured as a setting of its own; by the name tables show.
        answers: new tokens per answer.
        runs: timed rounds.
        warm_up: rounds before.
        request: what is asked, in words, for the record.
        mixes: shares of visual tokens, above 0 and at most 1, each measured as a setting of its own: the router run in
            full, its choice replaced by levels that differ within the batch and keep that share; by the name tables
            show.
        escalations: what answers are allowed to, each measured as a setting of its own; by the name tables show. What
            they were calibrated on doesn't matter here.

    Raises:
        ConfigError: a number is too small, a mix is no share, or an escalation has no threshold.
    """

    levels: Sequence[int] | None = None
    budgets: Mapping[str, ComponentConfig] | None = None
    answers: Sequence[int] = (1, 64)
    runs: int = ENOUGH
    warm_up: int = 3
    request: str = ""
    mixes: Mapping[str, float] | None = None
    escalations: Mapping[str, Escalate] | None = None

    def __post_init__(self) -> None:
        if not self.answers or min(self.answers) < 1:
            raise ConfigError(f"answers={list(self.answers)}: name one or more lengths of 1 token or more.")
        if self.runs < 1 or self.warm_up < 0:
            raise ConfigError(
                f"runs={self.runs} and warm_up={self.warm_up}: at least 1 run, and no negative warm-up. "
                f"{ENOUGH} runs or more give a 95th percentile."
            )
        for name, share in (self.mixes or {}).items():
            require_share(name, share)
        for name, allowed in (self.escalations or {}).items():
            if allowed.threshold is None:
                raise ConfigError(f"the escalation {name!r} has no threshold: write Escalate(threshold=...).")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of answers in tokens, ascending, each once."""
        return tuple(sorted(set(self.answers)))

    def settings(self, num_levels: int) -> tuple[MeasuredSetting, ...]:
        """The vanilla host first, then forced levels from the coarsest, routed, budgets, mixes, and escalations.

        Raises:
            ConfigError: there is no such level.
        """
        wanted = range(num_levels) if self.levels is None else self.levels
        wrong = [level for level in wanted if not -num_levels <= level < num_levels]
        if wrong:
            raise ConfigError(f"level {wrong[0]}: this scaler has levels 0 (fewest tokens) to {num_levels - 1}, or -1.")
        levels = sorted({level % num_levels for level in wanted} | {0, num_levels - 1})
        return (
            VANILLA,
            *(MeasuredSetting(f"level {level}", "level", level=level) for level in levels),
            MeasuredSetting("routed", "routed"),
            *(
                MeasuredSetting(f"routed, {name}", "budget", budget=budget)
                for name, budget in (self.budgets or {}).items()
            ),
            *(MeasuredSetting(f"mix {name}", "mix", share=share) for name, share in (self.mixes or {}).items()),
            *(
                MeasuredSetting(f"escalate {name}", "escalate", escalate=replace(allowed, calibrated=None))
                for name, allowed in (self.escalations or {}).items()
            ),
        )
