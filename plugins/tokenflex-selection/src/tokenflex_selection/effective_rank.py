"""As many tokens as a view has independent directions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenflex.contracts import Ballots, ComponentConfig, Grid, Instruction, Positive, Router, ScaledTokens
from tokenflex.ops.ballots import shortfall


class EffectiveRankRouter(Router):
    """Asks for ``factor`` times the effective rank of a view's features, whatever the words.

    Effective rank (Roy and Vetterli 2007) is exp of the entropy of the singular values, as shares of their sum; the
    features are taken as they are, not centred. The idea of choosing the number of tokens by it is AgilePruner's.
    """

    compares_levels: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``factor``, tokens asked for per unit of effective rank."""

        factor: Positive = 1.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.factor = config.factor

    def segments(self, grids: Sequence[Grid]) -> tuple[Grid, ...]:
        """One voter per view."""
        return (Grid(1, 1),)

    @torch.no_grad()
    def forward(self, pyramid: Sequence[ScaledTokens], instruction: Instruction) -> Ballots:
        """Vote against levels that keep fewer tokens than the finest level's effective rank."""
        values = torch.linalg.svdvals(pyramid[-1].features.float())
        shares = values / values.sum(-1, keepdim=True).clamp(min=1e-30)
        entropy = torch.special.entr(shares).sum(-1)
        return shortfall(self.factor * entropy.exp(), pyramid)
