"""No training: the coarsest level from which the finest can be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts import Ballots, ComponentConfig, Grid, Instruction, Router, Rule, ScaledTokens
from tokenflex.ops.ballots import one_per_view

Loss = Annotated[
    float, Rule(lambda value: value > 0, "must be above 0; with 0.5 a level may lose half of the variance.")
]
FLOOR = 1e-6
"""Share of the tokens' energy below which their variance counts as rounding."""


class ReconstructionRouter(Router):
    """Votes against every level whose tokens, put back in place, lose more than ``eps`` of the finest ones' variance.

    A view's loss at a level is ``sum |x - x'|^2 / sum |x - mean|^2`` over its finest tokens x: x' is the kept token
    that x went into, or the view's mean for a token that was dropped. 0 is no loss, 1 what a single mean token leaves.
    It looks at features and assignment only, so it works on every host and with every scaler, and ignores the
    instruction.

    Votes are minus the excess, ``max(loss / eps - 1, 0)``. With the voter ``mean`` and the policy ``argmax``, which
    gives ties to the coarser level, the coarsest level wins whose loss is at most ``eps`` in every view.
    """

    compares_levels: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``eps``, share of the variance that may be lost, above 0."""

        eps: Loss = 0.5

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.eps = config.eps

    def segments(self, grids: Sequence[Grid]) -> tuple[Grid, ...]:
        """One voter per view, as a grid of one place."""
        return (Grid(1, 1),)

    @torch.no_grad()
    def forward(self, pyramid: Sequence[ScaledTokens], instruction: Instruction) -> Ballots:
        """Minus the excess of every level's loss; see `Router.forward` for shapes."""
        last = pyramid[-1]
        whole = last.averages and last.features.shape[-2] == last.assignment.shape[-1]
        finest = last.features.float() if whole else _in_place(last, None)
        mean = finest.mean(-2, keepdim=True)
        spread = (finest - mean).square().sum(-1).sum(-1)
        lost = [
            spread - _explained(level, mean)
            if whole and level.averages
            else (finest - _in_place(level, mean)).square().sum((-2, -1))
            for level in pyramid
        ]
        scale = spread + FLOOR * finest.square().sum((-2, -1))
        losses = torch.stack(lost, dim=-1).clamp(min=0) / scale.clamp(min=torch.finfo(scale.dtype).tiny)[..., None]
        return one_per_view(-(losses / self.eps - 1).clamp(min=0))


def _explained(level: ScaledTokens, mean: Float[Tensor, "*batch views 1 dim"]) -> Float[Tensor, "*batch views"]:
    """The variance that kept means account for: of a group, its size times its mean's squared distance from ``mean``.

    The rest is what the group loses, so nothing of the finest tokens' size is touched.
    """
    from_mean = (level.features.float() - mean).square().sum(-1)
    there = (level.assignment >= 0).to(from_mean.dtype)
    sizes = torch.zeros_like(from_mean).scatter_add(-1, level.assignment.clamp(min=0), there)
    return (from_mean * sizes).sum(-1)


def _in_place(
    level: ScaledTokens, mean: Float[Tensor, "*batch views 1 dim"] | None
) -> Float[Tensor, "*batch views tokens dim"]:
    """For every source token the kept one it went into, float32; ``mean`` (or zero) where it was dropped."""
    kept = level.features.float()
    if level.frames is not None:
        kept = kept.index_select(-3, level.frames.to(kept.device))
    assignment = level.assignment[..., None]
    placed = kept.gather(-2, assignment.clamp(min=0).expand(*level.assignment.shape, kept.shape[-1]))
    return torch.where(assignment >= 0, placed, torch.zeros_like(placed) if mean is None else mean)
