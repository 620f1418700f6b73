import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Grid, Instruction
from tokenflex.errors import ConfigError
from tokenflex.testing import cases
from tokenflex_selection import EffectiveRankRouter

Config = EffectiveRankRouter.Config
NO_WORDS = Instruction(torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool))


@pytest.mark.parametrize("case", [*cases(Config()), *cases(Config(factor=3.0), levels=3)], ids=str)
def test_conformance(case):
    case()


def needed(ballots):
    """What a level of one token lacks, plus that token."""
    return 1 - ballots.logits[..., 0, 0]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # Two equal singular values: entropy log 2, effective rank 2.
        ([[1, 0], [0, 1], [0, 0]], 2.0),
        # 3 and 1, shares 3/4 and 1/4: exp(0.75 log(4/3) + 0.25 log 4) = exp(0.5623) = 1.7548.
        ([[3, 0], [0, 1], [0, 0]], 1.7548),
        # All tokens along one line: one singular value.
        ([[1, 2], [2, 4], [-1, -2]], 1.0),
        ([[5, 5], [5, 5], [5, 5]], 1.0),
        ([[0, 0], [0, 0], [0, 0]], 1.0),
    ],
)
def test_by_hand(levels_of, rows, expected):
    pyramid = levels_of(torch.tensor([rows], dtype=torch.float32), [1, 2])
    assert needed(Config().build()(pyramid, NO_WORDS)).tolist() == pytest.approx([expected], abs=1e-4)
    twice = Config(factor=2.0).build()(pyramid, NO_WORDS)
    assert needed(twice).tolist() == pytest.approx([2 * expected], abs=1e-4)


def test_votes_for_the_coarsest_that_is_enough(levels_of):
    # Effective rank 2 against levels of 1, 2 and 3 tokens.
    ballots = Config().build()(levels_of(torch.tensor([[[1.0, 0], [0, 1], [0, 0]]]), [1, 2]), NO_WORDS)
    assert ballots.logits[0, 0].tolist() == pytest.approx([-1, 0, 0], abs=1e-5)
    assert ballots.segments == (Grid(1, 1),)
    assert bool(ballots.mask.all())


@given(tokens=st.integers(1, 12), dim=st.integers(1, 9), seed=st.integers(0, 99))
def test_laws(levels_of, tokens, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, tokens, dim, generator=generator)
    router, pyramid = Config().build(), levels_of(features, [1])
    found = needed(router(pyramid, NO_WORDS))
    # Between one and the rank; the same in any order, at any scale, in any basis; view by view.
    assert bool((found > 1 - 1e-4).all())
    assert bool((found < min(tokens, dim) + 1e-4).all())
    order = torch.randperm(tokens, generator=generator)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    for changed in (features[..., order, :], 5 * features, features @ basis):
        again = needed(router(levels_of(changed, [1]), NO_WORDS))
        assert torch.allclose(again, found, atol=1e-4)
    for item in range(2):
        for view in range(3):
            alone = needed(router(levels_of(features[item, view : view + 1], [1]), NO_WORDS))
            assert torch.allclose(alone[0], found[item, view], atol=1e-5)


def loop(rows):
    """From the eigenvalues of the smaller Gram matrix, in double precision."""
    values = torch.tensor(rows, dtype=torch.float64)
    gram = values @ values.T if len(values) < values.shape[1] else values.T @ values
    singular = [math.sqrt(max(value, 0.0)) for value in torch.linalg.eigvalsh(gram).tolist()]
    total = sum(singular)
    entropy = 0.0
    for value in singular:
        if value > 0:
            entropy -= value / total * math.log(value / total)
    return math.exp(entropy)


@pytest.mark.parametrize("shape", [(20, 6), (6, 20), (9, 9)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_a_loop(levels_of, shape, seed):
    features = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(seed))
    found = needed(Config().build()(levels_of(features, [1]), NO_WORDS))
    expected = [loop(rows) for rows in features.flatten(0, 1).tolist()]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-4)


def test_half_precision(levels_of):
    features = torch.randn(1, 12, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    half = Config().build()(levels_of(features, [1]), NO_WORDS)
    whole = Config().build()(levels_of(features.float(), [1]), NO_WORDS)
    assert torch.equal(half.logits, whole.logits)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf])
def test_refusals(factor):
    with pytest.raises(ConfigError, match=r"must be a finite number( above 0|\.)"):
        Config(factor=factor).build()
