"""What is measured: settings of one model, answer lengths, and how often."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenflex.contracts import ComponentConfig
from tokenflex.errors import ConfigError

ENOUGH = 20
"""Runs from which on a 95th percentile says something."""

Kind = Literal["vanilla", "level", "routed", "budget"]


@dataclass(frozen=True)
class Setting:
    """One way to run the model.

    Attributes:
        name: as tables show it.
        kind: ``vanilla``, the plain host on the processor's full inputs; ``level``, forced, without the router;
            ``routed``; or ``budget``, routed within a budget.
        level: of kind ``level``.
        budget: of kind ``budget``: settings of the policy.
    """

    name: str
    kind: Kind
    level: int | None = None
    budget: ComponentConfig | None = None

    @property
    def decides(self) -> bool:
        """Whether the router runs."""
        return self.kind in ("routed", "budget")

    @property
    def arguments(self) -> dict[str, Any]:
        """For `FlexModel.generate` and `FlexModel.decide`."""
        given = {"level": self.level, "budget": self.budget}
        return {name: value for name, value in given.items() if value is not None}


VANILLA = Setting("vanilla", "vanilla")


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

    Raises:
        ConfigError: a number is too small.
    """

    levels: Sequence[int] | None = None
    budgets: Mapping[str, ComponentConfig] | None = None
    answers: Sequence[int] = (1, 64)
    runs: int = ENOUGH
    warm_up: int = 3
    request: str = ""

    def __post_init__(self) -> None:
        if not self.answers or min(self.answers) < 1:
            raise ConfigError(f"answers={list(self.answers)}: name one or more lengths of 1 token or more.")
        if self.runs < 1 or self.warm_up < 0:
            raise ConfigError(
                f"runs={self.runs} and warm_up={self.warm_up}: at least 1 run, and no negative warm-up. "
                f"{ENOUGH} runs or more give a 95th percentile."
            )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Answer lengths, ascending, each once."""
        return tuple(sorted(set(self.answers)))

    def settings(self, num_levels: int) -> tuple[Setting, ...]:
        """The vanilla host first, then forced levels from the coarsest, routed, and budgets.

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
            *(Setting(f"level {level}", "level", level=level) for level in levels),
            Setting("routed", "routed"),
            *(Setting(f"routed, {name}", "budget", budget=budget) for name, budget in (self.budgets or {}).items()),
        )
