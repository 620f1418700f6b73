"""A level at random: the baseline a trained router must beat."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenflex.contracts import Ballots, ComponentConfig, Grid, Instruction, Router, ScaledTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.ballots import one_per_view


class RandomRouter(Router):
    """A single voter per view that votes for a level drawn with given probabilities.

    The draw depends on ``seed`` and on the image and instruction themselves, so the same request always gets
    the same level, alone or in a batch.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``weights`` per level, any positive scale (empty: uniform); ``seed`` of the draws."""

        weights: tuple[float, ...] = ()
        seed: int = 0

    def __init__(self, config: Config, *, num_levels: int) -> None:
        super().__init__(config)
        weights = config.weights or (1.0,) * num_levels
        if len(weights) != num_levels or min(weights) < 0 or sum(weights) <= 0:
            raise ConfigError(f"weights={weights}; give {num_levels} numbers >= 0 that don't add up to 0.")
        self.weights, self.seed, self.num_levels = weights, config.seed, num_levels

    def segments(self, grids: Sequence[Grid]) -> tuple[Grid, ...]:
        """One voter, as a grid of one place."""
        return (Grid(1, 1),)

    def forward(self, pyramid: Sequence[ScaledTokens], instruction: Instruction) -> Ballots:
        """Ballots with one for the drawn level and zero for the others, the same in all views."""
        finest = pyramid[-1].features
        leading = finest.shape[:-3]
        images = finest.reshape(-1, *finest.shape[-3:])
        prompt = instruction.embeddings.reshape(len(images), -1, finest.shape[-1])
        masks = instruction.mask.reshape(len(images), -1)
        levels = [self._draw(i, w[m]) for i, w, m in zip(images, prompt, masks, strict=True)]
        votes = torch.eye(self.num_levels, device=finest.device)[torch.tensor(levels, device=finest.device)]
        return one_per_view(votes.view(*leading, 1, -1).expand(*leading, finest.shape[-3], -1))

    def _draw(self, image: Tensor, prompt: Tensor) -> int:
        digest = hashlib.sha256(str(self.seed).encode())
        for tensor in (image, prompt):
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()[:7], "big"))
        return int(torch.multinomial(torch.tensor(self.weights), 1, generator=generator))
