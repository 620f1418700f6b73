"""One voter, one vote."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts import Ballots, ComponentConfig, Voter
from tokenflex.ops.ballots import favourites


class MajorityVoter(Voter):
    """A level's score is the share of voters that like it best; a voter's ties go to the coarser level.

    It counts without gradients, so it is for routers that are trained with another voter, or not at all.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """It has no settings."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def forward(self, ballots: Ballots) -> Float[Tensor, "*batch levels"]:
        """Shares; zero where every ballot is masked."""
        return favourites(ballots, ballots.mask)
