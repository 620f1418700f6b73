"""What checks work with: a part built to fixed sizes, and seeded inputs for it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from tokenflex.contracts import Ballots, Component, ComponentConfig, Grid, Instruction, Need, ScaledTokens, VisualTokens
from tokenflex.ops.pooling import PYRAMID
from tokenflex.scalers.average_pool import AveragePoolScaler

GRIDS = (Grid(8, 8), Grid(5, 7), Grid(1, 6), Grid(1, 1))
CANONICAL = GRIDS[0]
VIEWS, PROMPT = 3, 4
KEY_WIDTH = 12
NEEDS: frozenset[Need] = frozenset(get_args(Need))


@dataclass(frozen=True)
class Check:
    """One law.

    Attributes:
        name: unique within its kind.
        law: what holds for every conforming part, as a sentence.
        run: raises ``AssertionError`` when the law is broken, `Skip` when it doesn't apply.
    """

    name: str
    law: str
    run: Callable[["Bench"], None]


class Skip(Exception):  # noqa: N818 - an outcome, not an error
    """The law says nothing about this part; the message says why."""


@dataclass(frozen=True)
class Bench:
    """A part's config and everything a check may want to feed the part.

    Attributes:
        config: of the part under test.
        levels: number of granularities of the pyramids that routers, voters and policies are given.
        dim: width of the features.
    """

    config: ComponentConfig
    levels: int = len(PYRAMID)
    dim: int = 32

    def build(self) -> Any:
        """The part with seeded weights, in evaluation mode."""
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        try:
            part: Component = self.config.build(
                dim=self.dim, grid=CANONICAL, num_levels=self.levels, segments=self.segments()
            )
        finally:
            torch.random.set_rng_state(state)
        return part.eval()

    def segments(self) -> tuple[Grid, ...]:
        """The voters' layout on the canonical grid: the tokens of every level, and words."""
        kept = self.pyramid(self.full_image())
        return (*(level.grid for level in kept if level.grid is not None), Grid(1, PROMPT))

    def image(self, grid: Grid = CANONICAL, views: int = VIEWS, seed: int = 0) -> Any:
        """Random tokens, with what the part under test needs of them and nothing else."""
        image = self.full_image(grid, views, seed)
        return replace(image, **dict.fromkeys(NEEDS - self.needs))

    def full_image(self, grid: Grid = CANONICAL, views: int = VIEWS, seed: int = 0) -> VisualTokens:
        """Random tokens with everything a part could ask for."""
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(views, grid.tokens, self.dim, generator=generator)
        attention = torch.rand(views, grid.tokens, generator=generator)
        keys = torch.randn(views, grid.tokens, KEY_WIDTH, generator=generator)
        return VisualTokens(features, grid, attention=attention, keys=keys, instruction=self.instruction(seed=seed))

    @property
    def needs(self) -> frozenset[str]:
        """What the part under test asks for; policies and voters ask for nothing."""
        return getattr(self.build(), "needs", frozenset())

    def pyramid(self, image: VisualTokens) -> list[ScaledTokens]:
        """An image at all levels, by average pooling."""
        windows = PYRAMID[len(PYRAMID) - self.levels :]
        scaler = AveragePoolScaler(AveragePoolScaler.Config(windows=windows))
        return [replace(level, attention=image.attention) for level in scaler.pyramid(image)]

    def instruction(self, count: int = PROMPT, seed: int = 0, batch: tuple[int, ...] = ()) -> Instruction:
        """Random words, none of them masked."""
        generator = torch.Generator().manual_seed(1000 + seed)
        embeddings = torch.randn(*batch, count, self.dim, generator=generator)
        return Instruction(embeddings, torch.ones(*batch, count, dtype=torch.bool))

    def ballots(self, views: int = VIEWS, seed: int = 0, batch: tuple[int, ...] = ()) -> Ballots:
        """Random votes, none of them masked."""
        voters = sum(grid.tokens for grid in self.segments())
        generator = torch.Generator().manual_seed(2000 + seed)
        logits = torch.randn(*batch, views, voters, self.levels, generator=generator)
        return Ballots(logits, torch.ones(*batch, views, voters, dtype=torch.bool), self.segments())


def stacked(*items: Any) -> Any:
    """Tensors of equal geometry under one leading batch axis: every tensor field stacked, the rest kept."""
    fields: dict[str, Any] = {}
    for name, value in vars(items[0]).items():
        if isinstance(value, Tensor):
            fields[name] = torch.stack([getattr(item, name) for item in items])
        elif isinstance(value, Instruction):
            fields[name] = stacked(*(getattr(item, name) for item in items))
    return replace(items[0], **fields)


def same(actual: Tensor, expected: Tensor, message: str, tolerance: float = 1e-5) -> None:
    """Fail with ``message`` unless the tensors agree in shape and, up to ``tolerance``, in value."""
    assert actual.shape == expected.shape, f"{message}: shapes {tuple(actual.shape)} and {tuple(expected.shape)}"
    difference = (actual.detach().float() - expected.detach().float()).abs()
    worst = float(difference.max()) if difference.numel() else 0.0
    assert worst <= tolerance, f"{message}: they differ by up to {worst:.3g}"
