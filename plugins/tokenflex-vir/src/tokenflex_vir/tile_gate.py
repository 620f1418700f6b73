"""A small classifier per tile: how many tokens does what it shows need?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from torch import nn

from tokenflex.contracts import Ballots, ComponentConfig, Grid, Instruction, Router, Rule, ScaledTokens
from tokenflex.ops.ballots import one_per_view

Width = Annotated[int, Rule(lambda value: value >= 1, "is no width; use an integer of 1 or more.")]


class TileGateRouter(Router):
    """Every view votes by itself, whatever the instruction (InternVL3.5-Flash, arXiv 2508.18265).

    The mean of the view's layer-normed tokens goes through an MLP with one output per level; with two levels these are
    the logits of "compress" and "keep". The last layer starts as zero, so a fresh gate is undecided.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``hidden``, width of the MLP's hidden layer."""

        hidden: Width = 512

    def __init__(self, config: Config, *, dim: int, num_levels: int) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(dim)
        last = nn.Linear(config.hidden, num_levels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(dim, config.hidden), nn.GELU(), last)

    def segments(self, grids: Sequence[Grid]) -> tuple[Grid, ...]:
        """One voter."""
        return (Grid(1, 1),)

    def forward(self, pyramid: Sequence[ScaledTokens], instruction: Instruction) -> Ballots:
        """One ballot per view, from its finest level."""
        finest = pyramid[-1].features.to(self.norm.weight.dtype)
        return one_per_view(self.mlp(self.norm(finest).mean(-2)))
