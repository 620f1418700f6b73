"""How many tokens are left when the redundant ones are merged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import Ballots, ComponentConfig, Grid, Instruction, Router, Rule, ScaledTokens
from tokenflex.ops.ballots import shortfall
from tokenflex_matching.bipartite import best_matches, joined
from tokenflex_matching.inputs import AtLeastOne

Cosine = Annotated[float, Rule(lambda value: -1 <= value <= 1, "is no cosine; use a number from -1 to 1.")]


class RedundancyRouter(Router):
    """Votes for as many tokens as merging above a threshold leaves (DyMU, arXiv 2504.17040).

    Rounds are those of ToMe on the finest level's features, but every pair above the threshold is merged instead of a
    fixed number of pairs. One voter per view.
    """

    compares_levels: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            threshold: cosine above which a token of A is redundant; at 1 none is. What is much depends on the host:
                calibrate it on images of yours until the levels chosen are what you can afford.
            rounds: rounds of merging; each leaves half of the tokens or more. Four can reach the level of 1/16.
        """

        threshold: Cosine = 0.9
        rounds: AtLeastOne = 4

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.threshold, self.rounds = config.threshold, config.rounds

    def segments(self, grids: Sequence[Grid]) -> tuple[Grid, ...]:
        """One voter."""
        return (Grid(1, 1),)

    def forward(self, pyramid: Sequence[ScaledTokens], instruction: Instruction) -> Ballots:
        """Votes against levels that keep fewer tokens than are left; see `Router.forward` for shapes."""
        features = pyramid[-1].features.detach().float()
        return shortfall(tokens_left(features, self.threshold, self.rounds).float(), pyramid)


@torch.no_grad()
def tokens_left(
    features: Float[Tensor, "*batch views tokens dim"], threshold: float, rounds: int
) -> Int[Tensor, "*batch views"]:
    """Tokens left per view. Shapes don't depend on the features: views with fewer tokens left have empty places."""
    count = features.shape[-2]
    assignment = torch.arange(count, device=features.device).expand(features.shape[:-1])
    left = assignment.amax(-1) + 1
    for _ in range(rounds if count > 1 else 0):
        best, partner = best_matches(features, assignment, count, left)
        assignment = joined(assignment, count, partner, best > threshold)
        left = assignment.amax(-1) + 1
    return left
