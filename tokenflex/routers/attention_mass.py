"""No training: as many tokens as hold most of the vision tower's attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from tokenflex.contracts import Ballots, ComponentConfig, Grid, Instruction, Need, Router, Rule, ScaledTokens
from tokenflex.errors import InputError
from tokenflex.ops.ballots import shortfall


class AttentionMassRouter(Router):
    """Per view, the fewest tokens that together receive ``mass`` of the attention; levels that keep fewer lose votes.

    Attention is that of the vision tower (see `VisualTokens.attention`), so a host is needed whose tower can be read.
    An image with one salient thing needs few tokens, a page of text many. It ignores the instruction.
    """

    compares_levels: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``mass``, share of the attention to be kept, above 0, at most 1."""

        mass: Annotated[float, Rule(lambda mass: 0 < mass <= 1, "is no share; use a number above 0, at most 1.")] = 0.9

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.mass = config.mass

    @property
    def needs(self) -> frozenset[Need]:
        """The vision tower's attention, which is all that it reads besides features."""
        return frozenset({"attention"})

    def segments(self, grids: Sequence[Grid]) -> tuple[Grid, ...]:
        """One voter per view, as a grid of one place."""
        return (Grid(1, 1),)

    @torch.no_grad()
    def forward(self, pyramid: Sequence[ScaledTokens], instruction: Instruction) -> Ballots:
        """See `tokenflex.ops.ballots.shortfall` and `Router.forward`.

        Raises:
            InputError: the pyramid comes without attention.
        """
        attention = pyramid[-1].attention
        if attention is None:
            raise InputError(
                "the attention-mass router got no attention. Tokens from a feedback store have it only if the store "
                "was scored with a part that needs attention."
            )
        largest = attention.float().sort(-1, descending=True).values.cumsum(-1)
        needed = (largest < self.mass * largest[..., -1:]).sum(-1) + 1
        return shortfall(needed.clamp(max=attention.shape[-1]).float(), pyramid)
