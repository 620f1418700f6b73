"""Routers without training: by hand, against their definitions in loops, and what they make of images."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenflex
from tokenflex.compressor import Compressor
from tokenflex.contracts import Grid, Instruction, VisualTokens
from tokenflex.errors import ConfigError, InputError
from tokenflex.policies.argmax import ArgmaxPolicy
from tokenflex.routers.attention_mass import AttentionMassRouter
from tokenflex.routers.reconstruction import ReconstructionRouter
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.scalers.stride import StrideScaler
from tokenflex.testing.strategies import pyramids
from tokenflex.voters.mean import MeanVoter

NO_WORDS = Instruction(torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool))
WINDOWS = ((2, 2), (1, 2), (1, 1))


def pyramid(features, grid, attention=None, video=False, windows=WINDOWS, scaler=AveragePoolScaler):
    levels = scaler(scaler.Config(windows=windows)).pyramid(VisualTokens(features, grid, video=video))
    return [replace(level, attention=attention) for level in levels]


def votes(router, levels):
    return router(levels, NO_WORDS).logits[..., 0, :]


def test_reconstruction_by_hand():
    # A 2 x 2 view of numbers 0 2 / 4 6: mean 3, variance sum 9 + 1 + 1 + 9 = 20.
    # One mean of all loses everything: 20 / 20 = 1. Means of rows, 1 and 5, lose 1 + 1 + 1 + 1 = 4 of 20: 0.2.
    levels = pyramid(torch.tensor([[[0.0], [2.0], [4.0], [6.0]]]), Grid(2, 2))
    router = ReconstructionRouter.Config(eps=0.1).build()
    torch.testing.assert_close(votes(router, levels), torch.tensor([[-9.0, -1.0, 0.0]]), atol=1e-3, rtol=1e-3)
    lenient = votes(ReconstructionRouter.Config(eps=0.25).build(), levels)
    torch.testing.assert_close(lenient, torch.tensor([[-3.0, 0.0, 0.0]]), atol=1e-3, rtol=1e-3)


def test_dropped_tokens_are_guessed_to_be_the_mean():
    # Stride keeps the lower right token of the window, 6; the others are guessed 3 and lose 9 + 1 + 1 = 11 of 20.
    levels = pyramid(torch.tensor([[[0.0], [2.0], [4.0], [6.0]]]), Grid(2, 2), scaler=StrideScaler)
    found = votes(ReconstructionRouter.Config(eps=1.0).build(), levels)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 0.0]]))
    found = votes(ReconstructionRouter.Config(eps=0.11).build(), levels)
    torch.testing.assert_close(found[0, 0], torch.tensor(-4.0), atol=1e-3, rtol=1e-3)


def looped_losses(levels):
    """view x level, element by element."""
    finest = levels[-1].features
    views, tokens, dim = finest.shape
    table = torch.zeros(views, len(levels))
    for view in range(views):
        mean = [sum(finest[view, t, d].item() for t in range(tokens)) / tokens for d in range(dim)]
        spread = sum((finest[view, t, d].item() - mean[d]) ** 2 for t in range(tokens) for d in range(dim))
        energy = sum(finest[view, t, d].item() ** 2 for t in range(tokens) for d in range(dim))
        for at, level in enumerate(levels):
            lost = 0.0
            for t in range(tokens):
                into = int(level.assignment[view, t])
                guess = mean if into < 0 else level.features[view, into].tolist()
                lost += sum((finest[view, t, d].item() - guess[d]) ** 2 for d in range(dim))
            table[view, at] = lost / (spread + 1e-6 * energy)
    return table


@given(pyramids(windows=WINDOWS), st.sampled_from([0.05, 0.3, 1.0]))
def test_reconstruction_in_loops(levels, eps):
    found = votes(ReconstructionRouter.Config(eps=eps).build(), levels)
    torch.testing.assert_close(found, -(looped_losses(levels) / eps - 1).clamp(min=0), atol=1e-3, rtol=1e-3)


@given(pyramids())
def test_the_finest_level_loses_nothing(levels):
    found = votes(ReconstructionRouter.Config().build(), levels)
    assert bool((found[..., -1] == 0).all())


def test_merged_frames_are_put_back_in_place():
    still = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0)).expand(4, 4, 3).contiguous()
    windows = ((2, 1, 1), (1, 1, 1))
    moving = still + torch.tensor([0.0, 3.0, 0.0, 3.0])[:, None, None]
    router = ReconstructionRouter.Config(eps=0.01).build()
    assert votes(router, pyramid(still, Grid(2, 2), video=True, windows=windows)).abs().max() < 1e-3
    assert votes(router, pyramid(moving, Grid(2, 2), video=True, windows=windows))[:, 0].max() < -1


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_plain_images_get_the_coarsest_level(value):
    parts = Compressor(
        AveragePoolScaler.Config().build(), ReconstructionRouter.Config().build(), MeanVoter.Config().build(),
        ArgmaxPolicy.Config().build(),
    )  # fmt: skip
    blank = VisualTokens(torch.full((2, 64, 4), value), Grid(8, 8))
    busy = VisualTokens(torch.randn(2, 64, 4, generator=torch.Generator().manual_seed(0)), Grid(8, 8))
    half = VisualTokens(torch.cat([blank.features[:1], busy.features[:1]]), Grid(8, 8))
    scores = parts.scores([blank, busy, half], [Instruction(torch.zeros(0, 4), NO_WORDS.mask)] * 3)
    counts = torch.tensor([parts.scaler.granularities(Grid(8, 8))] * 3)
    assert parts.choose(scores, counts, [blank, busy, half]) == [0, 4, 4], "one busy view is enough to need every token"


def test_attention_mass_by_hand():
    # 0.4 + 0.3 = 0.7 is less than 0.75, with 0.2 it is enough: 3 tokens. The levels keep 1, 2 and 4.
    levels = pyramid(torch.zeros(1, 4, 2), Grid(2, 2), torch.tensor([[0.2, 0.4, 0.1, 0.3]]))
    router = AttentionMassRouter.Config(mass=0.75).build()
    torch.testing.assert_close(votes(router, levels), torch.tensor([[-2.0, -0.5, 0.0]]))


@given(pyramids(windows=WINDOWS, needs=["attention"]), st.sampled_from([0.3, 0.9, 1.0]))
def test_attention_mass_in_loops(levels, mass):
    found = votes(AttentionMassRouter.Config(mass=mass).build(), levels)
    for view, row in enumerate(levels[-1].attention.tolist()):
        total, needed, reached = sum(row), 0, 0.0
        for weight in sorted(row, reverse=True):
            if reached >= mass * total * (1 - 1e-6):
                break
            reached, needed = reached + weight, needed + 1
        for at, level in enumerate(levels):
            expected = -max(needed / level.features.shape[-2] - 1, 0)
            # Sums are rounded: where the mass is reached to the last bit, one token more may be counted.
            assert abs(float(found[view, at]) - expected) <= 1 / level.features.shape[-2] + 1e-6


def test_one_token_that_is_looked_at_is_enough():
    attention = torch.zeros(1, 64)
    attention[0, 5] = 1.0
    levels = pyramid(torch.zeros(1, 64, 2), Grid(8, 8), attention, windows=((8, 8), (1, 1)))
    assert votes(AttentionMassRouter.Config().build(), levels).tolist() == [[0.0, 0.0]]
    levels = pyramid(torch.zeros(1, 64, 2), Grid(8, 8), torch.full((1, 64), 0.5), windows=((8, 8), (1, 1)))
    assert votes(AttentionMassRouter.Config(mass=1.0).build(), levels).tolist() == [[-63.0, 0.0]]


def test_attention_must_be_there():
    with pytest.raises(InputError, match="got no attention"):
        votes(AttentionMassRouter.Config().build(), pyramid(torch.zeros(1, 4, 2), Grid(2, 2)))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("reconstruction", {"eps": 0.0}, "eps=0.0 must be above 0"),
        ("attention-mass", {"mass": 0.0}, "mass=0.0 is no share"),
        ("attention-mass", {"mass": 1.1}, "mass=1.1 is no share"),
    ],
)
def test_bad_settings(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        tokenflex.routers.get(name).Config(**settings).build()


def test_they_work_on_a_host_without_any_training(host, left):
    for router in ("reconstruction", "attention-mass"):
        flex = tokenflex.wrap(host, router=router, voter="mean")
        assert not list(flex.compressor.parameters())
        decisions = flex.decide(**left)
        assert all(0 < one.tokens <= one.of for one in decisions)
        assert all(float(one.scores[-1]) == 0 for one in decisions)
        assert flex.generate(**left, max_new_tokens=2).shape[1] == left["input_ids"].shape[1] + 2
