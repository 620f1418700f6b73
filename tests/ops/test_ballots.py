"""Ballots made from numbers of tokens, and favourites counted."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Grid
from tokenflex.ops.ballots import favourites, one_per_view, shortfall
from tokenflex.policies.argmax import ArgmaxPolicy
from tokenflex.testing.strategies import ballots, pyramids
from tokenflex.voters.mean import MeanVoter


def test_one_voter_per_view():
    made = one_per_view(torch.tensor([[1, 2, 3], [4, 5, 6]]).half())
    assert made.logits.shape == (2, 1, 3)
    assert made.logits.dtype == torch.float32
    assert made.mask.all()
    assert made.segments == (Grid(1, 1),)


@given(pyramids(), st.integers(0, 99))
def test_the_coarsest_level_that_is_enough_for_every_view_wins(pyramid, seed):
    views, tokens = pyramid[-1].features.shape[:2]
    needed = torch.randint(1, tokens + 1, (views,), generator=torch.Generator().manual_seed(seed)).float()
    made = shortfall(needed, pyramid)
    counts = [level.features.shape[-2] for level in pyramid]
    for view in range(views):
        for level, count in enumerate(counts):
            expected = -max(float(needed[view]) / count - 1, 0.0)
            assert abs(float(made.logits[view, 0, level]) - expected) < 1e-5
    scores = MeanVoter.Config().build()(made)[None]
    chosen = int(ArgmaxPolicy.Config().build()(scores, torch.tensor([counts])))
    assert counts[chosen] >= needed.max()
    assert chosen == 0 or counts[chosen - 1] < needed.max() or counts[chosen - 1] == counts[chosen]


@given(ballots(levels=4))
def test_favourites_are_shares(found):
    shares = favourites(found, found.mask)
    if found.mask.any():
        torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
    else:
        assert shares.tolist() == [0.0] * 4
