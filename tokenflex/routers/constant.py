"""Always the same level: the fixed-granularity baseline."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tokenflex.contracts import Ballots, ComponentConfig, Grid, Instruction, Router, ScaledTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.ballots import one_per_view


class ConstantRouter(Router):
    """A single voter per view that always votes for one level."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``level`` voted for; negative counts from the finest, -1."""

        level: int = -1

    def __init__(self, config: Config, *, num_levels: int) -> None:
        super().__init__(config)
        if not -num_levels <= config.level < num_levels:
            raise ConfigError(f"level={config.level}; with {num_levels} levels use 0..{num_levels - 1} or -1.")
        self.level, self.num_levels = config.level % num_levels, num_levels

    def segments(self, grids: Sequence[Grid]) -> tuple[Grid, ...]:
        """One voter, as a grid of one place."""
        return (Grid(1, 1),)

    def forward(self, pyramid: Sequence[ScaledTokens], instruction: Instruction) -> Ballots:
        """Ballots with one for the level and zero for the others."""
        finest = pyramid[-1].features
        logits = finest.new_zeros(*finest.shape[:-2], self.num_levels, dtype=torch.float32)
        logits[..., self.level] = 1.0
        return one_per_view(logits)
