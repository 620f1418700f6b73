import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError
from tokenflex.ops.keeping import kept_count
from tokenflex.testing import cases
from tokenflex_selection import DARTScaler

Config = DARTScaler.Config


@pytest.mark.parametrize("case", [*cases(Config()), *cases(Config(pivots=1))], ids=str)
def test_conformance(case):
    case()


def test_by_hand(tiny, kept):
    # Norms 3, 2, 1, 1, 1, 1. Two pivots: 0 at 0 degrees, 1 at 90. Three more of five: two for pivot 0, one for pivot 1.
    # Cosines to pivot 0 of the others, at 100, 170, 200 and 300 degrees: -0.17, -0.98, -0.94, 0.5; it takes 3 and 4.
    # Pivot 1 is left with 2 (cos 10 = 0.98) and 5 (cos 210 = -0.87) and takes 5.
    polar = ((3, 0), (2, 90), (1, 100), (1, 170), (1, 200), (1, 300))
    image = tiny([[r * math.cos(math.radians(a)), r * math.sin(math.radians(a))] for r, a in polar])
    assert kept(Config(ratios=(5 / 6, 1.0), pivots=2).build().scale(image, 0)) == [[0, 1, 3, 4, 5]]
    # Where one token is kept, it is the longest.
    assert kept(Config(ratios=(1 / 6, 1.0)).build().scale(image, 0)) == [[0]]


@given(
    grid=st.builds(Grid, st.integers(1, 6), st.integers(1, 7)),
    seed=st.integers(0, 99),
    pivots=st.sampled_from([1, 3, 8]),
)
def test_laws(laws, grid, seed, pivots):
    laws(Config(pivots=pivots), grid, seed, nested=False)


def test_stays_on_the_device(laws):
    laws.stay_on_device(Config())


def loop(rows, count, pivots):
    lengths = [math.hypot(*row) for row in rows]

    def cosine(i, j):
        return sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) / (lengths[i] * lengths[j])

    chosen = sorted(range(len(rows)), key=lambda i: -lengths[i])[: min(pivots, count)]
    picked = list(chosen)
    for number, pivot in enumerate(chosen):
        quota = (count - len(chosen)) // len(chosen) + (number < (count - len(chosen)) % len(chosen))
        left = [i for i in range(len(rows)) if i not in picked]
        picked += sorted(left, key=lambda i: cosine(pivot, i))[:quota]
    return sorted(picked)


@pytest.mark.parametrize("pivots", [1, 3, 8])
@pytest.mark.parametrize("grid", [Grid(5, 5), Grid(1, 9)])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_a_loop(image, kept, grid, seed, pivots):
    one_image, scaler = image(grid, seed), Config(pivots=pivots).build()
    for ratio, level in zip(scaler.ratios[:-1], scaler.pyramid(one_image), strict=False):
        count = kept_count(ratio, grid.tokens)
        assert kept(level) == [loop(rows, count, pivots) for rows in one_image.features.flatten(0, 1).tolist()]


@pytest.mark.parametrize("pivots", [0, -1, True])
def test_refusals(pivots):
    with pytest.raises(ConfigError, match=r"must be an integer(, 1 or more|\.)"):
        Config(pivots=pivots).build()
