"""Every ballot counts the same."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts import Ballots, ComponentConfig, Voter


class MeanVoter(Voter):
    """The mean over unmasked ballots of all views, in float32; any number of voters."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """It has no settings."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def forward(self, ballots: Ballots) -> Float[Tensor, "*batch levels"]:
        """Average; zero where every ballot is masked."""
        mask = ballots.mask[..., None]
        logits = ballots.logits.float().masked_fill(~mask, 0.0)
        return logits.sum((-3, -2)) / mask.sum((-3, -2)).clamp(min=1)
