"""Batches whose images have different levels, so that together they keep a given share of their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Policy
from tokenflex.contracts.levels import read_levels, spread
from tokenflex.errors import ConfigError

MIXES = {"AI2D": 0.147, "ScienceQA": 0.549, "ChartQA": 0.991}
"""Shares of visual tokens that AVG-LLaVA keeps on three benchmarks: few, half, nearly all (arXiv 2410.02745)."""


def levels_for(share: float, shares: Sequence[float], images: int) -> tuple[int, ...]:
    """One level per image, coarse to fine: of all mixes of two neighbouring levels the one next to the share.

    Args:
        share: of the visual tokens that the batch is to keep, above 0 and at most 1.
        shares: of the levels, ascending, the last one 1.
        images: in the batch; the more there are, the nearer the mix comes.
    """
    last = len(shares) - 1
    mixes = [
        [low] * (images - finer) + [min(low + 1, last)] * finer for low in range(last + 1) for finer in range(images)
    ]
    return tuple(min(mixes, key=lambda mix: abs(fmean(shares[level] for level in mix) - share)))


def read_mix(text: str) -> float:
    """The share of tokens that a name of `MIXES` or a number stands for.

    Raises:
        ConfigError: it is neither, or no share.
    """
    try:
        share = MIXES[text] if text in MIXES else float(text)
    except ValueError:
        share = 0.0
    require_share(text, share)
    return share


def require_share(name: str, share: float) -> None:
    """Refuse what is no share of the tokens.

    Raises:
        ConfigError: it isn't above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ConfigError(
            f"mix {name}: name {', '.join(MIXES)}, or a share of the visual tokens above 0 and at most 1, e.g. 0.3."
        )


class GivenLevels(Policy):
    """The levels it was given, one per image of the batch, whatever the scores say."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``levels``, one per image; negative counts from the finest, -1."""

        levels: tuple[int, ...]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.levels = config.levels

    def forward(
        self, scores: Float[Tensor, "images levels"], tokens: Int[Tensor, "images levels"]
    ) -> Int[Tensor, " images"]:
        """Those levels.

        Raises:
            InputError: there is no such level, or not one per image.
        """
        found = spread(read_levels(self.levels, scores.shape[-1]), len(scores))
        return torch.tensor(found, device=scores.device)
