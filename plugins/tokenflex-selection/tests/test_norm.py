import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError
from tokenflex.ops.keeping import kept_count
from tokenflex.testing import cases
from tokenflex_selection import FarthestPointScaler, NormScaler

Config = NormScaler.Config


@pytest.mark.parametrize("case", [*cases(Config()), *cases(Config(diversity=0.5))], ids=str)
def test_conformance(case):
    case()


def test_by_hand(tiny, kept):
    # Norms 5, 4.5, 3, 1, 0.
    image = tiny([[0, 5], [0, 4.5], [3, 0], [0, 1], [0, 0]])
    scaler = Config(ratios=(0.4, 0.6, 1.0)).build()
    assert [kept(level)[0] for level in scaler.pyramid(image)[:2]] == [[0, 1], [0, 1, 2]]


def test_mix_by_hand(tiny, kept):
    # Norms as above; distances to the first: 0.5, sqrt(34) = 5.83, 4, 5. Half and half: 2.5, 4.42, 2.5, 2.5; the third
    # comes second. Distances to the nearer of the two: 0.5, 3.16, 3; mixed: 2.5, 2.08, 1.5; the second comes third.
    image = tiny([[0, 5], [0, 4.5], [3, 0], [0, 1], [0, 0]])
    scaler = Config(ratios=(0.4, 0.6, 1.0), diversity=0.5).build()
    assert [kept(level)[0] for level in scaler.pyramid(image)[:2]] == [[0, 2], [0, 1, 2]]


@given(
    grid=st.builds(Grid, st.integers(1, 6), st.integers(1, 7)),
    seed=st.integers(0, 99),
    diversity=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_laws(laws, grid, seed, diversity):
    laws(Config(diversity=diversity), grid, seed)


@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_stays_on_the_device(laws, diversity):
    laws.stay_on_device(Config(diversity=diversity))


def test_distance_alone_is_farthest_point(image):
    one_image = image(Grid(4, 5))
    ours = Config(diversity=1.0).build().pyramid(one_image)
    theirs = FarthestPointScaler.Config().build().pyramid(one_image)
    assert all(torch.equal(a.assignment, b.assignment) for a, b in zip(ours, theirs, strict=True))


def loop(rows, count, diversity):
    norms = [math.hypot(*row) for row in rows]
    picked = [max(range(len(rows)), key=lambda i: norms[i])]
    while len(picked) < count:
        left = [i for i in range(len(rows)) if i not in picked]
        nearest = {i: min(math.dist(rows[i], rows[j]) for j in picked) for i in left}
        picked.append(max(left, key=lambda i: (1 - diversity) * norms[i] + diversity * nearest[i]))
    return sorted(picked)


@pytest.mark.parametrize("diversity", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("grid", [Grid(4, 5), Grid(1, 9)])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_a_loop(image, kept, grid, seed, diversity):
    one_image, scaler = image(grid, seed), Config(diversity=diversity).build()
    for ratio, level in zip(scaler.ratios[:-1], scaler.pyramid(one_image), strict=False):
        count = kept_count(ratio, grid.tokens)
        assert kept(level) == [loop(rows, count, diversity) for rows in one_image.features.flatten(0, 1).tolist()]


@pytest.mark.parametrize("diversity", [-0.1, 1.1, math.nan])
def test_refusals(diversity):
    with pytest.raises(ConfigError, match=r"is no share; use a number from 0 to 1|must be a finite number"):
        Config(diversity=diversity).build()
