"""Hypothesis strategies for what parts are given. They need the package ``hypothesis``; the rest of the kit doesn't.

Numbers are drawn from a seed, shapes by hypothesis: failures shrink to the smallest shape, and a seed is easily pasted
into a test of its own.
"""

from collections.abc import Collection, Sequence

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from tokenflex.contracts import Ballots, Grid, Instruction, Need, ScaledTokens, VisualTokens
from tokenflex.ops.pooling import PYRAMID, Windows
from tokenflex.scalers.average_pool import AveragePoolScaler

LEADING: tuple[tuple[int, ...], ...] = ((), (1,), (2,), (2, 3))
"""Batch axes."""
SEEDS = st.integers(0, 2**16)
KEY_WIDTH = 6


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grids(max_side: int = 8) -> SearchStrategy[Grid]:
    """Grids of 1 to ``max_side`` rows and columns."""
    sides = st.integers(1, max_side)
    return st.builds(Grid, rows=sides, cols=sides)


@st.composite
def instructions(draw: DrawFn, dim: int = 8, leading: tuple[int, ...] = (), max_words: int = 5) -> Instruction:
    """Instructions of 0 to ``max_words`` words, some of them masked."""
    length, seed = draw(st.integers(0, max_words)), draw(SEEDS)
    mask = _random(seed + 1, *leading, length) > -1
    return Instruction(_random(seed, *leading, length, dim), mask)


@st.composite
def images(
    draw: DrawFn,
    grid: SearchStrategy[Grid] | None = None,
    *,
    dim: int = 8,
    max_views: int = 3,
    leading: SearchStrategy[tuple[int, ...]] | None = None,
    needs: Collection[Need] = (),
    video: SearchStrategy[bool] | None = None,
) -> VisualTokens:
    """Tokens of one image, or of a stack.

    Args:
        grid: `grids` by default.
        leading: batch axes; none by default (`LEADING` has some to sample from).
        needs: what the scaler under test asks for; the rest stays None.
        video: whether the views are frames; never by default.
    """
    layout = draw(grids() if grid is None else grid)
    batch = draw(leading) if leading is not None else ()
    views, seed = draw(st.integers(1, max_views)), draw(SEEDS)
    shape = (*batch, views, layout.tokens)
    return VisualTokens(
        _random(seed, *shape, dim),
        layout,
        video=draw(video) if video is not None else False,
        attention=_random(seed + 1, *shape).softmax(-1) if "attention" in needs else None,
        keys=_random(seed + 2, *shape, KEY_WIDTH) if "keys" in needs else None,
        instruction=draw(instructions(dim, batch)) if "instruction" in needs else None,
    )


@st.composite
def pyramids(
    draw: DrawFn,
    image: SearchStrategy[VisualTokens] | None = None,
    *,
    windows: Windows = PYRAMID,
    needs: Collection[Need] = (),
) -> tuple[ScaledTokens, ...]:
    """What routers are given: an image at every level, by average pooling.

    Args:
        image: `images` by default.
        needs: ``attention`` for routers that ask for it.
    """
    tokens = draw(images(needs=needs) if image is None else image)
    levels = AveragePoolScaler(AveragePoolScaler.Config(windows=windows)).pyramid(tokens)
    return tuple(ScaledTokens(**{**vars(level), "attention": tokens.attention}) for level in levels)


@st.composite
def ballots(
    draw: DrawFn, *, levels: int = 5, max_views: int = 3, leading: tuple[int, ...] = (), max_side: int = 4
) -> Ballots:
    """What voters are given: up to three segments of voters, some of them masked, some tied."""
    segments: Sequence[Grid] = draw(st.lists(grids(max_side), min_size=1, max_size=3))
    views, seed = draw(st.integers(1, max_views)), draw(SEEDS)
    shape = (*leading, views, sum(grid.tokens for grid in segments))
    logits = _random(seed, *shape, levels)
    if draw(st.booleans()):
        logits = logits.round()
    return Ballots(logits, _random(seed + 1, *shape) > draw(st.sampled_from([-9.0, 0.0])), tuple(segments))


@st.composite
def batches(
    draw: DrawFn, *, dim: int = 8, max_images: int = 4, needs: Collection[Need] = ()
) -> tuple[tuple[VisualTokens, ...], tuple[Instruction, ...]]:
    """What an assembly is given: images of unlike geometry, and an instruction for each."""
    shown = draw(st.lists(images(dim=dim, needs=needs), min_size=1, max_size=max_images))
    return tuple(shown), tuple(draw(instructions(dim)) for _ in shown)
