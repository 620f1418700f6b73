"""How many tokens the vision tower looks at unusually much."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import Ballots, ComponentConfig, Grid, Instruction, Need, NotNegative, Router, ScaledTokens
from tokenflex.ops.ballots import shortfall
from tokenflex.ops.needed import attention_of


class OutliersRouter(Router):
    """Votes for as many tokens as have outlying attention (LLaVA-PruMerge, arXiv 2403.15388).

    A token is an outlier when its attention is above Q3 + 1.5 (Q3 - Q1). The quartiles are those of its own view,
    so that neither other views nor other images matter. One voter per view.
    """

    compares_levels: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``whisker``, how many interquartile ranges above Q3 outliers begin; 1.5 as published."""

        whisker: NotNegative = 1.5

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.whisker = config.whisker

    @property
    def needs(self) -> frozenset[Need]:
        """``attention``."""
        return frozenset({"attention"})

    def segments(self, grids: Sequence[Grid]) -> tuple[Grid, ...]:
        """One voter."""
        return (Grid(1, 1),)

    def forward(self, pyramid: Sequence[ScaledTokens], instruction: Instruction) -> Ballots:
        """Votes against levels that keep fewer tokens than there are outliers; see `Router.forward` for shapes.

        Raises:
            InputError: the levels come without attention.
        """
        attention = attention_of(pyramid[-1].attention, "the outliers router")
        return shortfall(outliers(attention, self.whisker).float(), pyramid)


@torch.no_grad()
def outliers(attention: Float[Tensor, "*batch views tokens"], whisker: float) -> Int[Tensor, "*batch views"]:
    """Outliers per view, at least 1; quartiles are interpolated linearly.

    Args:
        attention: float32.
        whisker: interquartile ranges between Q3 and the fence.
    """
    lower, upper = attention.quantile(0.25, dim=-1), attention.quantile(0.75, dim=-1)
    fence = upper + whisker * (upper - lower)
    return (attention > fence[..., None]).sum(-1).clamp(min=1)
