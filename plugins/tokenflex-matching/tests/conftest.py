"""Images to try the parts on, and the laws that every scaler here keeps."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from torch._subclasses.fake_tensor import FakeTensorMode

from tokenflex.contracts import Grid, Scaler, VisualTokens
from tokenflex.ops.keeping import kept_count

settings.register_profile("no-clock", deadline=None)  # a test that is slow on a busy machine isn't wrong
settings.load_profile("no-clock")


def _image(grid: Grid, seed: int = 0, leading: tuple[int, ...] = (2,), dim: int = 6) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(*leading, grid.tokens, dim, generator=generator)
    attention = torch.rand(*leading, grid.tokens, generator=generator)
    keys = torch.randn(*leading, grid.tokens, 4, generator=generator)
    return VisualTokens(features, grid, attention=attention, keys=keys)


def _blank(image: VisualTokens) -> VisualTokens:
    """The same image with all tokens of a view like its first: everything is a tie."""
    return _each(image, lambda t: t[:, :, :1].expand_as(t).contiguous())


def _each(image: VisualTokens, change: Callable[[torch.Tensor], torch.Tensor]) -> VisualTokens:
    assert image.attention is not None
    assert image.keys is not None
    return VisualTokens(change(image.features), image.grid, attention=change(image.attention), keys=change(image.keys))


def _check_laws(scaler: Scaler, image: VisualTokens) -> None:
    """Counts, assignments, independence of everything around a view; ``image`` has axes batch, views, tokens."""
    tokens = image.grid.tokens
    for level, ratio in enumerate(scaler.config.ratios):
        scaled, kept = scaler.scale(image, level), kept_count(ratio, tokens)
        assert scaled.features.shape == (*image.features.shape[:-2], kept, image.features.shape[-1])
        assert scaled.assignment.shape == image.features.shape[:-1]
        for batch, item in enumerate(scaled.assignment):
            for view, into in enumerate(item):
                assert sorted(set(into.tolist()) - {-1}) == list(range(kept))
                alone = scaler.scale(_each(image, lambda t, b=batch, v=view: t[b, v : v + 1]), level)
                assert torch.equal(alone.assignment[0], into)
                assert torch.allclose(alone.features[0], scaled.features[batch, view], atol=1e-5)


def _grouped(assignment: torch.Tensor) -> torch.Tensor:
    """Whether two tokens have the same number, for every two of them."""
    return assignment[..., :, None] == assignment[..., None, :]


def _check_permutation(scaler: Scaler, image: VisualTokens, seed: int) -> None:
    """Tokens in another order give the same groups of tokens."""
    order = torch.randperm(image.grid.tokens, generator=torch.Generator().manual_seed(seed))
    turned = VisualTokens(
        image.features[..., order, :], image.grid, attention=image.attention[..., order], keys=image.keys[..., order, :]
    )
    for level in range(scaler.num_levels):
        before, after = (scaler.scale(item, level).assignment for item in (image, turned))
        assert torch.equal(_grouped(before[..., order]), _grouped(after))
        assert torch.equal(before[..., order] < 0, after < 0)


def _check_shapes_alone(scaler: Scaler, image: VisualTokens) -> None:
    """Runs without data, so no decision is read by the host and no shape depends on the features."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = scaler.pyramid(_each(image, mode.from_tensor))
    for scaled, real in zip(fakes, scaler.pyramid(image), strict=True):
        assert scaled.features.shape == real.features.shape
        assert scaled.assignment.shape == real.assignment.shape


@pytest.fixture(scope="session")
def make_image():
    return _image


@pytest.fixture(scope="session")
def blank():
    return _blank


@pytest.fixture(scope="session")
def check_laws():
    return _check_laws


@pytest.fixture(scope="session")
def check_permutation():
    return _check_permutation


@pytest.fixture(scope="session")
def check_shapes_alone():
    return _check_shapes_alone
