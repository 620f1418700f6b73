"""Always one level, whatever the scores say."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Policy
from tokenflex.errors import ConfigError, InputError


class ConstantPolicy(Policy):
    """Picks one level for every image, whatever the scores are."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``level`` to pick; negative counts from the finest, -1."""

        level: int = -1

    def __init__(self, config: Config, *, num_levels: int | None = None) -> None:
        super().__init__(config)
        if num_levels is not None and not -num_levels <= config.level < num_levels:
            raise ConfigError(f"level={config.level}; with {num_levels} levels use 0..{num_levels - 1} or -1.")
        self.level = config.level

    def forward(
        self, scores: Float[Tensor, "images levels"], tokens: Int[Tensor, "images levels"]
    ) -> Int[Tensor, " images"]:
        """The same level for every image.

        Raises:
            InputError: there is no such level.
        """
        levels = scores.shape[-1]
        if not -levels <= self.level < levels:
            raise InputError(f"level={self.level}; with {levels} levels use 0..{levels - 1} or -1.")
        return torch.full(scores.shape[:1], self.level % levels, dtype=torch.long, device=scores.device)
