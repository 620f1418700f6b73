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
    # Of six, four are kept. The two of most attention: 5 and 2. The rest in the order of attention, 3 1 4 0, points to
    # 90, 10, 180 and 0 degrees; the first ones are 3 and 4, the second ones 1 and 0. Largest cosines: 3 to 1
    # cos 80 = 0.174; 4 to 1 cos 170 = -0.985. Two must go, but a round drops one: 3. Left are 4, then the second ones,
    # 1 and 0; now the first ones are 4 and 0, the second one 1: cosines cos 170 = -0.985 and cos 10 = 0.985; 0 goes.
    angles = (0, 10, 45, 90, 180, 270)
    image = tiny(
        [[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles],
        attention=[0.1, 0.3, 0.8, 0.4, 0.2, 0.9],
    )
    scaler = Config(ratios=(4 / 6, 1.0), per_round=1).build()
    assert kept(scaler.scale(image, 0)) == [[1, 2, 4, 5]]
    # In one round, both first ones go, 3 and 4.
    assert kept(Config(ratios=(4 / 6, 1.0)).build().scale(image, 0)) == [[0, 1, 2, 5]]


def test_survivors_go_on_with_the_most_similar_first(tiny, kept):
    # Attention falls: 0 1 2 3 4 5 6 7 at 0, 20, 100, 130, 200, 250, 300 and 359 degrees, none important. First ones:
    # 0 2 4 6, second ones 1 3 5 7, where 0 is 1 degree from 7, 2 is 30 from 3, 4 is 50 from 5, 6 is 50 from 5 (and 59
    # from 7); 0 goes. Left in order of likeness: 2, then 4 and 6 which tie, the more attended counting as less alike:
    # 6 4. Then 1 3 5 7. So the next first ones are 2 4 3 7, the second ones 6 1 5 ..., and so on.
    angles = (0, 20, 100, 130, 200, 250, 300, 359)
    rows = [[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles]
    image = tiny(rows, attention=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    scaler = Config(ratios=(6 / 8, 1.0), important=0.0, per_round=1).build()
    # Sequence 2 6 4 1 3 5 7: first ones 2 4 3 7, second ones 6 1 5. Cosines: 2 to 1 cos 80 = 0.17, 4 to 5 cos 50 =
    # 0.64, 3 to 1 cos 110 = -0.34 or to 5 cos 120, 7 to 1 cos 21 = 0.93: 7 goes.
    assert kept(scaler.scale(image, 0)) == [[1, 2, 3, 4, 5, 6]]


def test_the_share_of_important_tokens_is_rounded_down(image, kept):
    # Three of nine are kept, one of them by attention.
    one_image = image(Grid(3, 3))
    found = kept(Config(ratios=(1 / 3, 1.0)).build().scale(one_image, 0))
    views = zip(one_image.features.flatten(0, 1).tolist(), one_image.attention.flatten(0, 1).tolist(), strict=True)
    assert found == [sorted(loop(*view, 3, 1 / 3, 8)) for view in views]


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
    by_attention = order[: int(count * important)]
    target = count - len(by_attention)
    rest = order[len(by_attention) :]
    while target and len(rest) > target:
        first, second = rest[0::2], rest[1::2]
        doubles = sorted(first, key=lambda i: -max(cosine(i, j) for j in second))
        rest = doubles[min(per_round, len(rest) - target) :] + second
    return sorted(by_attention + (rest if target else []))


@pytest.mark.parametrize(("important", "per_round"), [(0.5, 8), (0.3, 2), (0.0, 1)])
@pytest.mark.parametrize("grid", [Grid(5, 5), Grid(1, 9), Grid(8, 9)])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_a_loop(image, kept, grid, seed, important, per_round):
    one_image, scaler = image(grid, seed), Config(important=important, per_round=per_round).build()
    features, attention = one_image.features.flatten(0, 1), one_image.attention.flatten(0, 1)
    views = list(zip(features.tolist(), attention.tolist(), strict=True))
    for ratio, level in zip(scaler.ratios[:-1], scaler.pyramid(one_image), strict=False):
        count = kept_count(ratio, grid.tokens)
        assert kept(level) == [loop(*view, count, important, per_round) for view in views]


def test_refusals(tiny):
    with pytest.raises(ConfigError, match=r"important=1\.5 is no share"):
        Config(important=1.5).build()
    with pytest.raises(ConfigError, match="per_round=0 must be an integer"):
        Config(per_round=0).build()
    with pytest.raises(InputError, match=r"VisualTokens\.attention"):
        Config().build().pyramid(tiny([[1, 0]] * 4))
