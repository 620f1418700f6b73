"""As fine as most voters want it."""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts import Ballots, ComponentConfig, Rule, Voter
from tokenflex.ops.ballots import favourites

ShareOfVoters = Annotated[
    float, Rule(lambda value: 0 < value <= 1, "is no share of the voters; use a number above 0, at most 1.")
]


class QuantileVoter(Voter):
    """The coarsest level that is fine enough for a share of the voters.

    A voter wants the level it likes best (ties: the coarser one), and finer ones do as well. A level's score is minus
    the share of voters it lacks to reach ``share``, 0 when it lacks none; the policy ``argmax`` gives ties to the
    coarser level. 0.5 is the median, 1 the finest that anybody wants. It counts without gradients.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``share`` of the voters to be content, above 0, at most 1."""

        share: ShareOfVoters = 0.9

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.share = config.share

    def forward(self, ballots: Ballots) -> Float[Tensor, "*batch levels"]:
        """Minus the missing share per level; the same for all levels where every ballot is masked."""
        content = favourites(ballots, ballots.mask).cumsum(-1)
        # Sums of shares are rounded; a level that reaches the share exactly must not lack 1e-8 of it.
        return -(self.share - 1e-6 - content).clamp(min=0)
