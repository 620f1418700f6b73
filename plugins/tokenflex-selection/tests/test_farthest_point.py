import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError
from tokenflex.ops.keeping import kept_count
from tokenflex.testing import cases
from tokenflex_selection import FarthestPointScaler

Config = FarthestPointScaler.Config


@pytest.mark.parametrize("case", cases(Config()), ids=str)
def test_conformance(case):
    case()


def test_by_hand(tiny, kept):
    # (3, 4) has norm 5 and starts. Distances: (0, 0) 5, (3, 0) 4, (0, 1) sqrt(9 + 9) = 4.24, (2, 4) 1; (0, 0) is next.
    # To the nearer of the two: (3, 0) 3, (0, 1) 1, (2, 4) 1; (3, 0) is third. Then 1 and 1: the lower index, (0, 1).
    image = tiny([[0, 0], [3, 0], [0, 1], [3, 4], [2, 4]])
    levels = Config(ratios=(0.2, 0.4, 0.6, 0.8, 1.0)).build().pyramid(image)
    assert [kept(level)[0] for level in levels[:-1]] == [[3], [0, 3], [0, 1, 3], [0, 1, 2, 3]]


@given(grid=st.builds(Grid, st.integers(1, 6), st.integers(1, 7)), seed=st.integers(0, 99))
def test_laws(laws, grid, seed):
    laws(Config(), grid, seed)


def test_stays_on_the_device(laws):
    laws.stay_on_device(Config())


def test_equal_tokens_go_by_index(palette, kept):
    image, first = palette
    five, eight, _ = Config(ratios=(5 / 24, 8 / 24, 1.0)).build().pyramid(image)
    assert kept(five) == [first]
    assert kept(eight) == [sorted([*first, 1, 3, 5])]


def test_far_from_the_origin(tiny, kept):
    # Around (1000, 1000) the squares of the coordinates leave float32 no room for the distances.
    image = tiny([[1000 + x, 1000 + y] for x, y in ((0.5, 0.5), (0, 0), (0.25, 0), (0, 0.4), (0.3, 0.3))])
    assert kept(Config(ratios=(0.6, 1.0)).build().scale(image, 0)) == [[0, 1, 3]]


def loop(rows, count):
    """From the longest, always the one farthest from the nearest kept one."""
    picked = [max(range(len(rows)), key=lambda i: math.hypot(*rows[i]))]
    while len(picked) < count:
        left = [i for i in range(len(rows)) if i not in picked]
        picked.append(max(left, key=lambda i: min(math.dist(rows[i], rows[j]) for j in picked)))
    return sorted(picked)


@pytest.mark.parametrize("grid", [Grid(4, 5), Grid(1, 9)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_a_loop(image, kept, grid, seed):
    one_image, scaler = image(grid, seed), Config().build()
    for ratio, level in zip(scaler.ratios[:-1], scaler.pyramid(one_image), strict=False):
        expected = [loop(rows, kept_count(ratio, grid.tokens)) for rows in one_image.features.flatten(0, 1).tolist()]
        assert kept(level) == expected


def test_refusals():
    with pytest.raises(ConfigError, match="is no share of the tokens"):
        Config(ratios=(0.0, 1.0)).build()
