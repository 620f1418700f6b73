"""What the gate is taught: whether compression hurts, by the ratio of consistency losses (arXiv 2508.18265)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tokenflex.errors import ConfigError, InputError

FLOOR = 1e-6
"""Nats per answer token below which a loss at the fine level counts as this much."""


class RunningQuantile(nn.Module):
    """The quantile of the last so many values. Its state dict holds them, for runs that are resumed.

    Args:
        quantile: share of the values, 0 to 1, that lie below: of the units, the share that the gate should compress.
        window: how many values are remembered.
    """

    values: Tensor

    def __init__(self, quantile: float, window: int = 1024) -> None:
        super().__init__()
        if not 0 <= quantile <= 1:
            raise ConfigError(f"quantile={quantile!r} is no share; use a number from 0 to 1.")
        if window < 1:
            raise ConfigError(f"window={window!r} is no number of values; use an integer of 1 or more.")
        self.quantile, self.window = quantile, window
        self.register_buffer("values", torch.full((window,), float("nan")))

    @torch.no_grad()
    def update(self, values: Float[Tensor, " units"]) -> None:
        """Remember ``values``, the last one being the newest; what isn't finite is left out."""
        new = values.detach().float().to(self.values.device)
        self.values = torch.cat([self.values, new[new.isfinite()]])[-self.window :]

    @property
    def value(self) -> Float[Tensor, ""]:
        """The quantile, interpolated linearly; NaN as long as there are no values."""
        return self.values.nanquantile(self.quantile)


def loss_ratio(
    loss_at_coarse: Float[Tensor, " units"], loss_at_fine: Float[Tensor, " units"]
) -> Float[Tensor, " units"]:
    """How many times the loss grows by compression; a loss below `FLOOR` at the fine level counts as `FLOOR`."""
    return loss_at_coarse / loss_at_fine.clamp(min=FLOOR)


def vir_targets(
    loss_at_coarse: Float[Tensor, " units"],
    loss_at_fine: Float[Tensor, " units"],
    threshold: float | Float[Tensor, ""],
) -> Float[Tensor, " units"]:
    """The gate's labels: 1 (needs the fine level) where the ratio of losses is at least ``threshold``, else 0.

    NaN where a loss is NaN (a row without answers).

    Args:
        loss_at_coarse, loss_at_fine: consistency losses of each unit at both levels, against the same reference.
        threshold: as published, a `RunningQuantile` of past ratios.
    """
    ratio = loss_ratio(loss_at_coarse.detach(), loss_at_fine.detach())
    needs = (ratio >= threshold).to(ratio.dtype)
    return torch.where(ratio.isnan(), ratio, needs)


def gate_loss(
    scores: Float[Tensor, "units levels"], targets: Float[Tensor, " units"], units: Tensor | int | None = None
) -> Float[Tensor, ""]:
    """Binary cross-entropy of "needs the fine level", whose logit is the margin between fine and coarse scores.

    The mean over units whose target isn't NaN; 0, and still part of the graph, when there are none.

    Args:
        units: how many such units the mean is over, where these are only some of them; None: these.

    Raises:
        InputError: there are more or fewer than two levels.
    """
    if scores.shape[-1] != 2:
        raise InputError(f"the gate is taught to choose between 2 levels, and there are {scores.shape[-1]}.")
    margin = (scores[:, 1] - scores[:, 0]).float()
    known = ~targets.isnan()
    losses = F.binary_cross_entropy_with_logits(margin, targets.nan_to_num(0.0).to(margin), reduction="none")
    return (losses * known).sum() / (known.sum() if units is None else torch.as_tensor(units)).clamp(min=1)
