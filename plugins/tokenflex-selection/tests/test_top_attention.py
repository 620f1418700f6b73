import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError, InputError
from tokenflex.ops.keeping import kept_count
from tokenflex.testing import cases
from tokenflex_selection import TopAttentionScaler

Config = TopAttentionScaler.Config


@pytest.mark.parametrize("case", cases(Config()), ids=str)
def test_conformance(case):
    case()


def test_by_hand(tiny, kept):
    # The largest two of 0.1 0.4 0.3 0.4 0.2 are the 0.4s; three: the 0.3 as well.
    image = tiny([[1, 0]] * 5, attention=[0.1, 0.4, 0.3, 0.4, 0.2])
    levels = Config(ratios=(0.2, 0.4, 0.6, 1.0)).build().pyramid(image)
    assert [kept(level) for level in levels] == [[[1]], [[1, 3]], [[1, 2, 3]], [[0, 1, 2, 3, 4]]]


@given(grid=st.builds(Grid, st.integers(1, 6), st.integers(1, 7)), seed=st.integers(0, 99))
def test_laws(laws, grid, seed):
    laws(Config(), grid, seed)


def test_stays_on_the_device(laws):
    laws.stay_on_device(Config())


@pytest.mark.parametrize("grid", [Grid(4, 5), Grid(1, 9)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_a_loop(image, kept, grid, seed):
    one_image, scaler = image(grid, seed), Config().build()
    for ratio, level in zip(scaler.ratios, scaler.pyramid(one_image), strict=True):
        for attention, found in zip(one_image.attention.flatten(0, 1).tolist(), kept(level), strict=True):
            left = list(range(grid.tokens))
            picked = []
            for _ in range(kept_count(ratio, grid.tokens)):
                best = max(left, key=lambda i: attention[i])
                left.remove(best)
                picked.append(best)
            assert found == sorted(picked)


def test_equal_attention_goes_by_index(tiny, kept):
    attention = [float(i % 3) for i in range(3000)]
    image = tiny([[1, 0]] * 3000, attention=attention)
    assert kept(Config(ratios=(0.25, 1.0)).build().scale(image, 0)) == [[i for i in range(3000) if i % 3 == 2][:750]]


def test_refusals(tiny):
    with pytest.raises(ConfigError, match=r"must end with 1\.0"):
        Config(ratios=(0.5,)).build()
    with pytest.raises(InputError, match=r"VisualTokens\.attention"):
        Config().build().scale(tiny([[1, 0]] * 4), 0)
