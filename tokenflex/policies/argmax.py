"""The published policy: the best score wins."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Policy


class ArgmaxPolicy(Policy):
    """The level of the highest score; equal scores go to the coarser level."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """It has no settings."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def forward(
        self, scores: Float[Tensor, "images levels"], tokens: Int[Tensor, "images levels"]
    ) -> Int[Tensor, " images"]:
        """Arg-max per image; the first of equals."""
        best = scores >= scores.amax(-1, keepdim=True)
        return best.int().argmax(-1)
