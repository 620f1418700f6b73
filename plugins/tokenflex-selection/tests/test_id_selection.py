import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError, InputError
from tokenflex.ops.keeping import kept_count
from tokenflex.testing import cases
from tokenflex_selection import IDSelectionScaler, TopAttentionScaler

Config = IDSelectionScaler.Config


@pytest.mark.parametrize("case", [*cases(Config()), *cases(Config(damping=0.5))], ids=str)
def test_conformance(case):
    case()


def test_by_hand(tiny, kept):
    # Attention 0.9 0.8 0.3 0.2; token 1 points as token 0 does, 2 is at 60 degrees to it, 3 at 180.
    # After 0: 0.8 * 0, 0.3 * (1 - 0.5) = 0.15, 0.2 (opposites aren't damped): 3. Then 0.15 * (1 - 0): 2.
    image = tiny([[1, 0], [2, 0], [0.5, math.sqrt(0.75)], [-1, 0]], attention=[0.9, 0.8, 0.3, 0.2])
    levels = Config(ratios=(0.25, 0.5, 0.75, 1.0)).build().pyramid(image)
    assert [kept(level)[0] for level in levels[:3]] == [[0], [0, 3], [0, 2, 3]]
    # Damped by half: 0.8 * 0.5 = 0.4, 0.3 * 0.75 = 0.225, 0.2.
    assert kept(Config(ratios=(0.5, 1.0), damping=0.5).build().scale(image, 0)) == [[0, 1]]


@given(
    grid=st.builds(Grid, st.integers(1, 6), st.integers(1, 7)),
    seed=st.integers(0, 99),
    damping=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_laws(laws, grid, seed, damping):
    laws(Config(damping=damping), grid, seed)


def test_stays_on_the_device(laws):
    laws.stay_on_device(Config())


def test_undamped_is_attention(image):
    one_image = image(Grid(4, 5))
    ours = Config(damping=0.0).build().pyramid(one_image)
    theirs = TopAttentionScaler.Config().build().pyramid(one_image)
    assert all(torch.equal(a.assignment, b.assignment) for a, b in zip(ours, theirs, strict=True))


def test_no_attention_at_all(tiny, kept):
    image = tiny([[1, 0]] * 8, attention=[0.0] * 8)
    assert kept(Config().build().scale(image, 3)) == [[0, 1, 2, 3]]


def loop(rows, attention, count, damping):
    scores, picked = list(attention), []
    while len(picked) < count:
        best = max((i for i in range(len(rows)) if i not in picked), key=lambda i: scores[i])
        picked.append(best)
        for i, row in enumerate(rows):
            dot = sum(a * b for a, b in zip(row, rows[best], strict=True))
            scores[i] *= 1 - damping * max(dot / (math.hypot(*row) * math.hypot(*rows[best])), 0.0)
    return sorted(picked)


@pytest.mark.parametrize("damping", [0.3, 1.0])
@pytest.mark.parametrize("grid", [Grid(4, 5), Grid(1, 9)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_a_loop(image, kept, grid, seed, damping):
    one_image, scaler = image(grid, seed), Config(damping=damping).build()
    features, attention = one_image.features.flatten(0, 1), one_image.attention.flatten(0, 1)
    views = list(zip(features.tolist(), attention.tolist(), strict=True))
    for ratio, level in zip(scaler.ratios[:-1], scaler.pyramid(one_image), strict=False):
        count = kept_count(ratio, grid.tokens)
        assert kept(level) == [loop(*view, count, damping) for view in views]


def test_refusals(tiny):
    with pytest.raises(ConfigError, match=r"damping=2\.0 is no share"):
        Config(damping=2.0).build()
    with pytest.raises(InputError, match=r"VisualTokens\.attention"):
        Config().build().scale(tiny([[1, 0]] * 4), 0)
