"""Scores of several images: in their order, without the host waiting for the device, exact in half precision."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tokenflex.compressor import build
from tokenflex.contracts import Ballots, Grid, Instruction, VisualTokens
from tokenflex.policies.argmax import ArgmaxPolicy
from tokenflex.routers.avg import AVGRouter
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.voters.position_weighted import PositionWeightedVoter

DIM, GRID = 32, Grid(8, 8)
GEOMETRIES = [(3, GRID), (1, GRID), (3, GRID), (3, Grid(7, 5)), (1, GRID)]

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.is_nonzero}


class NeverWaits(TorchDispatchMode):
    """Refuses operations for which the host reads from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in WAITS, f"{func} makes the host wait"
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def compressor():
    torch.manual_seed(0)
    parts = [AveragePoolScaler.Config(), AVGRouter.Config(text_tokens=4), PositionWeightedVoter.Config()]
    return build(*parts, ArgmaxPolicy.Config(), dim=DIM, grid=GRID).eval()


@pytest.fixture(scope="module")
def requests():
    """Images of three geometries, mixed, and instructions of several lengths."""
    torch.manual_seed(1)
    images = [VisualTokens(torch.randn(views, grid.tokens, DIM), grid) for views, grid in GEOMETRIES]
    words = [Instruction(torch.randn(count, DIM), torch.ones(count, dtype=torch.bool)) for count in (3, 0, 6, 5, 2)]
    return images, words


@torch.no_grad()
def test_scores_keep_the_order_of_the_images(compressor, requests):
    together = compressor.scores(*requests)
    assert together.shape == (len(GEOMETRIES), 5)
    for row, image, words in zip(together, *requests, strict=True):
        torch.testing.assert_close(row, compressor.scores([image], [words])[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_scoring_never_makes_the_host_wait(compressor, requests):
    with NeverWaits():
        scores = compressor.scores(*requests)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            scores.sum().item()


def test_scaled_images_stay_averages(compressor, requests):
    images = [*requests[0], VisualTokens(torch.randn(3, GRID.tokens, DIM), GRID, video=True)]
    scaled = compressor.scale(images, [0, 1, 2, 3, 4, 0])
    assert all(item.averages for item in scaled)
    in_time = AveragePoolScaler.Config(windows=((2, 2, 2), (1, 1, 1))).build()
    assert [in_time.scale(images[-1], level).averages for level in (0, 1)] == [False, True]


@torch.no_grad()
def test_half_precision_ballots_are_counted_in_float32():
    """A sum over more than a thousand bfloat16 rows would lose the small ones."""
    torch.manual_seed(0)
    segments = (Grid(24, 24), Grid(24, 24), Grid(1, 32))
    voter = PositionWeightedVoter.Config().build(segments=segments, num_levels=5)
    logits = (torch.randn(2, 5, 1184, 5) + torch.arange(5)).bfloat16()
    mask = torch.ones(logits.shape[:-1], dtype=torch.bool)
    expected = voter(Ballots(logits.float(), mask, segments))
    with torch.autocast("cpu", torch.bfloat16):
        found = voter(Ballots(logits, mask, segments))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    tally = torch.einsum("nvrl,r->nl", logits.double(), voter.weight.double()) / 5
    norm = torch.nn.functional.layer_norm(tally, (5,))
    torch.testing.assert_close(found.double(), norm, atol=1e-4, rtol=0)
