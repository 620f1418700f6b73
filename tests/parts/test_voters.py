"""Counting ballots: examples by hand, laws, and the definitions voter by voter."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenflex
from tokenflex.contracts import Ballots, Grid
from tokenflex.errors import ConfigError
from tokenflex.policies.argmax import ArgmaxPolicy
from tokenflex.testing.strategies import ballots
from tokenflex.voters.attention import AttentionVoter

LEVELS = 3
COUNTING = ["majority", "max-detail", "quantile"]


def voter(name, **settings):
    return tokenflex.voters.get(name).Config(**settings).build(num_levels=LEVELS)


def said(*rows, mask=None):
    """One view with a voter per row."""
    logits = torch.tensor([rows], dtype=torch.float32)
    mask = torch.ones(1, len(rows), dtype=torch.bool) if mask is None else torch.tensor([mask])
    return Ballots(logits, mask, (Grid(1, len(rows)),))


def chosen(scores):
    policy = ArgmaxPolicy.Config().build()
    return policy(scores.reshape(-1, scores.shape[-1]), torch.zeros(scores[..., 0].numel(), LEVELS).long()).tolist()


COARSE, MIDDLE, FINE = (5.0, 0.0, 0.0), (0.0, 5.0, 0.0), (0.0, 0.0, 5.0)
MEEK = (0.0, 0.0, 0.1)


def test_by_hand():
    # Four voters like the levels 0, 1, 1, 2 best.
    four = said(COARSE, MIDDLE, MIDDLE, FINE)
    torch.testing.assert_close(voter("majority")(four), torch.tensor([0.25, 0.5, 0.25]))
    # Content at level 0: 1 of 4; at level 1: 3 of 4; at level 2: all. A share of 0.9 lacks 0.65, 0.15, 0.
    torch.testing.assert_close(voter("quantile")(four), torch.tensor([-0.65, -0.15, 0.0]), atol=2e-6, rtol=0)
    assert chosen(voter("quantile", share=0.75)(four)) == [1]
    assert chosen(voter("quantile", share=0.25)(four)) == [0]
    # 3 of 4 want finer than level 0, 1 of 4 finer than level 1, nobody finer than level 2.
    torch.testing.assert_close(voter("max-detail")(four), torch.tensor([-0.75, -0.25, 0.0]))


def test_max_detail_listens_to_the_confident():
    # softmax(0, 0, 0.1) gives its favourite 0.356 < 0.5: it is heard only where nobody is confident.
    assert chosen(voter("max-detail")(said(COARSE, COARSE, MEEK))) == [0]
    assert chosen(voter("max-detail")(said(COARSE, MIDDLE, MEEK))) == [1]
    assert chosen(voter("max-detail")(said(MEEK, MEEK))) == [2]
    assert chosen(voter("max-detail", confidence=0.3)(said(COARSE, COARSE, MEEK))) == [2]


def test_ties_go_to_the_coarser_level():
    tied = said((1.0, 1.0, 0.0))
    for name in COUNTING:
        assert chosen(voter(name)(tied)) == [0]


def test_nobody_votes():
    silent = said(COARSE, FINE, mask=[False, False])
    for name in (*COUNTING, "attention", "mean"):
        scores = voter(name)(silent)
        assert bool((scores == scores[0]).all()), name


def listed(found):
    """The unmasked ballots, as numbers."""
    return [
        found.logits[v, i].tolist()
        for v in range(found.logits.shape[0])
        for i in range(found.logits.shape[1])
        if found.mask[v, i]
    ]


def favourite(ballot):
    return ballot.index(max(ballot))


@given(ballots(levels=LEVELS))
def test_majority_is_a_count(found):
    rows = [favourite(ballot) for ballot in listed(found)]
    expected = [rows.count(level) / len(rows) if rows else 0.0 for level in range(LEVELS)]
    torch.testing.assert_close(voter("majority")(found), torch.tensor(expected))


@given(ballots(levels=LEVELS), st.sampled_from([0.25, 0.5, 0.9, 1.0]))
def test_quantile_is_the_coarsest_level_with_enough_content_voters(found, share):
    rows = [favourite(ballot) for ballot in listed(found)]
    if rows:
        enough = [sum(r <= level for r in rows) >= share * len(rows) - 1e-9 for level in range(LEVELS)]
        assert chosen(voter("quantile", share=share)(found)) == [enough.index(True)]


@given(ballots(levels=LEVELS), st.sampled_from([0.0, 0.5, 0.8]))
def test_max_detail_is_the_finest_favourite_of_the_confident(found, confidence):
    rows = listed(found)
    sure = [r for r in rows if max(torch.tensor(r).softmax(-1).tolist()) >= confidence]
    if rows:
        assert chosen(voter("max-detail", confidence=confidence)(found)) == [max(map(favourite, sure or rows))]


@given(ballots(levels=LEVELS), st.integers(0, 99))
def test_attention_is_a_softmax_over_all_voters(found, seed):
    part = AttentionVoter.Config().build(num_levels=LEVELS)
    part.query.data = torch.randn(LEVELS, generator=torch.Generator().manual_seed(seed))
    rows = torch.tensor(listed(found)).view(-1, LEVELS)
    weights = torch.tensor([sum(a * b for a, b in zip(r, part.query.tolist(), strict=True)) for r in rows.tolist()])
    expected = (weights.exp() / weights.exp().sum())[:, None] * rows if len(rows) else rows
    torch.testing.assert_close(part(found), expected.sum(0), atol=1e-5, rtol=1e-4)


@given(ballots(levels=LEVELS))
def test_attention_starts_as_the_mean(found):
    torch.testing.assert_close(voter("attention")(found), voter("mean")(found), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [*COUNTING, "attention", "mean"])
@given(data=st.data())
def test_neither_the_batch_nor_the_order_of_voters_matters(name, data):
    part = voter(name)
    found = data.draw(ballots(levels=LEVELS, leading=(3,)))
    scores = part(found)
    for i in range(3):
        torch.testing.assert_close(part(Ballots(found.logits[i], found.mask[i], found.segments)), scores[i])
    order = torch.randperm(found.logits.shape[-2], generator=torch.Generator().manual_seed(0))
    shuffled = replace(found, logits=found.logits[..., order, :], mask=found.mask[..., order])
    torch.testing.assert_close(part(shuffled), scores)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("quantile", {"share": 0.0}, "share=0.0 is no share"),
        ("quantile", {"share": 1.5}, "share=1.5 is no share"),
        ("max-detail", {"confidence": -0.1}, "confidence=-0.1 is no probability"),
    ],
)
def test_bad_settings(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        voter(name, **settings)
