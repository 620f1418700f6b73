import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError, InputError
from tokenflex.ops.keeping import kept_count
from tokenflex.testing import cases
from tokenflex_selection import VisPrunerScaler

Config = VisPrunerScaler.Config


@pytest.mark.parametrize("case", [*cases(Config()), *cases(Config(important=1.0, per_round=1))], ids=str)
def test_conformance(case):
    case()


def test_by_hand(tiny, kept):
    # Of six, four are kept. The two of most attention: 5 and 2. The rest, 0 1 3 4, points to 0, 10, 90 and 180
    # degrees; the first ones are 0 and 3, the second ones 1 and 4. Largest cosines: 0 to 1 cos 10 = 0.985; 3 to 1
    # cos 80 = 0.174. Two must go, but a round drops one: 0. Left are 1 3 4, first ones 1 and 4, the second one 3:
    # cosines cos 80 = 0.174 and cos 90 = 0; 1 goes.
    angles = (0, 10, 45, 90, 180, 270)
    image = tiny(
        [[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles],
        attention=[0.1, 0.2, 0.8, 0.3, 0.3, 0.9],
    )
    scaler = Config(ratios=(4 / 6, 1.0), per_round=1).build()
    assert kept(scaler.scale(image, 0)) == [[2, 3, 4, 5]]
    # In one round, both first ones go, 0 and 3.
    assert kept(Config(ratios=(4 / 6, 1.0)).build().scale(image, 0)) == [[1, 2, 4, 5]]


@given(
    grid=st.builds(Grid, st.integers(1, 6), st.integers(1, 7)),
    seed=st.integers(0, 99),
    important=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    per_round=st.sampled_from([1, 3, 8]),
)
def test_laws(laws, grid, seed, important, per_round):
    # Which tokens are compared depends on their order, so there is no law about permutations.
    laws(Config(important=important, per_round=per_round), grid, seed, permutable=False, nested=False)


def test_stays_on_the_device(laws):
    laws.stay_on_device(Config())


def loop(rows, attention, count, important, per_round):
    lengths = [math.hypot(*row) for row in rows]

    def cosine(i, j):
        return sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) / (lengths[i] * lengths[j])

    order = sorted(range(len(rows)), key=lambda i: -attention[i])
    by_attention = order[: int(count * important + 0.5)]
    target = count - len(by_attention)
    rest = sorted(order[len(by_attention) :])
    while target and len(rest) > target:
        first, second = rest[0::2], rest[1::2]
        doubles = sorted(first, key=lambda i: -max(cosine(i, j) for j in second))
        for i in doubles[: min(per_round, len(rest) - target)]:
            rest.remove(i)
    return sorted(by_attention + (rest if target else []))


@pytest.mark.parametrize(("important", "per_round"), [(0.5, 8), (0.3, 2), (0.0, 1)])
@pytest.mark.parametrize("grid", [Grid(5, 5), Grid(1, 9)])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_a_loop(image, kept, grid, seed, important, per_round):
    picture, scaler = image(grid, seed), Config(important=important, per_round=per_round).build()
    views = list(zip(picture.features.flatten(0, 1).tolist(), picture.attention.flatten(0, 1).tolist(), strict=True))
    for ratio, level in zip(scaler.ratios[:-1], scaler.pyramid(picture), strict=False):
        count = kept_count(ratio, grid.tokens)
        assert kept(level) == [loop(*view, count, important, per_round) for view in views]


def test_refusals(tiny):
    with pytest.raises(ConfigError, match=r"important=1\.5 is no share"):
        Config(important=1.5).build()
    with pytest.raises(ConfigError, match="per_round=0 must be an integer"):
        Config(per_round=0).build()
    with pytest.raises(InputError, match=r"VisualTokens\.attention"):
        Config().build().pyramid(tiny([[1, 0]] * 4))
