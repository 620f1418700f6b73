"""Batches whose images have different levels."""

from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.errors import ConfigError, InputError
from tokenflex.profiling.mix import MIXES, GivenLevels, levels_for, read_mix

SHARES = (0.0625, 0.125, 0.25, 0.5, 1.0)


def test_a_batch_meets_the_share_with_two_neighbours():
    assert levels_for(0.147, SHARES, 8) == (1, 1, 1, 1, 1, 1, 1, 2)
    assert levels_for(0.75, SHARES, 4) == (3, 3, 4, 4)
    assert levels_for(0.01, SHARES, 3) == (0, 0, 0)
    assert levels_for(1.0, SHARES, 2) == (4, 4)
    assert levels_for(0.3, SHARES, 1) == (2,)
    assert levels_for(0.3, (1.0,), 2) == (0, 0)


@given(st.floats(0.0625, 1.0), st.integers(1, 40))
def test_the_mean_is_as_near_as_one_image_allows(share, images):
    levels = levels_for(share, SHARES, images)
    assert len(levels) == images
    assert levels == tuple(sorted(levels))
    assert levels[-1] - levels[0] <= 1
    step = SHARES[min(levels[0] + 1, 4)] - SHARES[levels[0]] or SHARES[4] - SHARES[3]
    assert abs(fmean(SHARES[level] for level in levels) - share) <= step / images / 2 + 1e-9


def test_mixes_by_name_or_share():
    assert {name: read_mix(name) for name in MIXES} == MIXES
    assert read_mix("0.3") == 0.3
    for wrong in ("AI2E", "0", "1.5", "-1", "nan"):
        with pytest.raises(ConfigError, match=f"mix {wrong}: name AI2D, ScienceQA, ChartQA, or a share"):
            read_mix(wrong)


def test_given_levels_are_chosen_whatever_the_scores():
    policy = GivenLevels.Config(levels=(0, -1, 2)).build(num_levels=5)
    scores, tokens = torch.randn(3, 5), torch.arange(5).expand(3, 5)
    assert policy(scores, tokens).tolist() == [0, 4, 2]
    with pytest.raises(InputError, match="level has 3 entries for 2 images"):
        policy(scores[:2], tokens[:2])
    with pytest.raises(InputError, match="level 2 is out of range"):
        policy(scores[:, :2], tokens[:, :2])
