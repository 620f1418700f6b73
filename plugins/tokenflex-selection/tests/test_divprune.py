import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError
from tokenflex.ops.keeping import kept_count
from tokenflex.testing import cases
from tokenflex_selection import DivPruneScaler
from tokenflex_selection.spread import spread

Config = DivPruneScaler.Config


@pytest.mark.parametrize("case", cases(Config()), ids=str)
def test_conformance(case):
    case()


def test_by_hand(tiny, kept):
    # Directions 0, 30, 90 and 200 degrees. Distance 1 - cos to the nearest other: 30 deg: 0.134, 0.134, 60 deg: 0.5,
    # 110 deg: 1.342; so 200 starts. Distances to it: 160 deg: 1.940, 170 deg: 1.985, 1.342; so 30 is next.
    # To the nearer of the two: 0 has 0.134, 90 has 0.5; so 90 is the third.
    image = tiny([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in (0, 30, 90, 200)])
    levels = Config(ratios=(0.25, 0.5, 0.75, 1.0)).build().pyramid(image)
    assert [kept(level)[0] for level in levels] == [[3], [1, 3], [1, 2, 3], [0, 1, 2, 3]]


def test_length_is_nothing(tiny, kept):
    short = tiny([[1, 0], [0, 1], [-1, 0.1], [0.5, 0.5]])
    long = tiny([[9, 0], [0, 3], [-10, 1], [0.1, 0.1]])
    scaler = Config(ratios=(0.5, 1.0)).build()
    assert kept(scaler.scale(short, 0)) == kept(scaler.scale(long, 0))


@given(grid=st.builds(Grid, st.integers(1, 6), st.integers(1, 7)), seed=st.integers(0, 99))
def test_laws(laws, grid, seed):
    laws(Config(), grid, seed, permutable=False)


@given(grid=st.builds(Grid, st.integers(1, 6), st.integers(1, 7)), seed=st.integers(0, 99))
def test_order_is_nothing(image, laws, grid, seed):
    one_image = image(grid, seed, leading=(1,), views=1)
    unit = torch.nn.functional.normalize(one_image.features[0, 0], dim=-1)
    isolation = (1 - unit @ unit.T + 9 * torch.eye(grid.tokens)).amin(-1).sort(descending=True).values
    # Two tokens that are each other's nearest neighbours may tie for the first place.
    assume(grid.tokens == 1 or float(isolation[0] - isolation[1]) > 1e-5)
    laws.permute(Config(), one_image, seed)


def test_stays_on_the_device(laws):
    laws.stay_on_device(Config())


def test_equal_tokens_go_by_index(palette, kept):
    image, first = palette
    five, eight, _ = Config(ratios=(5 / 24, 8 / 24, 1.0)).build().pyramid(image)
    assert kept(five) == [first]
    assert kept(eight) == [sorted([*first, 1, 3, 5])]


def test_what_differs_by_rounding_is_equal():
    # Tokens 1 and 2 are equally far from token 0, but for the last digit.
    distances = torch.tensor([[0, 1, 1 + 2e-7], [1, 0, 0.5], [1 + 2e-7, 0.5, 0]])
    assert spread(distances, torch.tensor(0), 3).tolist() == [0, 1, 2]


def test_blank_images_go_by_index(tiny, kept):
    for value in (0.0, 7.0):
        assert kept(Config().build().scale(tiny([[value] * 3] * 32), 2)) == [list(range(8))]


def loop(rows, count):
    """Farthest from its nearest neighbour first, then farthest from the nearest kept one."""
    lengths = [math.sqrt(sum(v * v for v in row)) for row in rows]
    n = len(rows)

    def distance(i, j):
        return 1 - sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) / (lengths[i] * lengths[j])

    picked = [max(range(n), key=lambda i: min(distance(i, j) for j in range(n) if j != i))]
    while len(picked) < count:
        left = [i for i in range(n) if i not in picked]
        picked.append(max(left, key=lambda i: min(distance(i, j) for j in picked)))
    return sorted(picked)


@pytest.mark.parametrize("grid", [Grid(4, 5), Grid(1, 9)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_a_loop(image, kept, grid, seed):
    one_image, scaler = image(grid, seed), Config().build()
    for ratio, level in zip(scaler.ratios[:-1], scaler.pyramid(one_image), strict=False):
        expected = [loop(rows, kept_count(ratio, grid.tokens)) for rows in one_image.features.flatten(0, 1).tolist()]
        assert kept(level) == expected


def test_refusals():
    with pytest.raises(ConfigError, match="must go from coarse to fine"):
        Config(ratios=(0.5, 0.25, 1.0)).build()
