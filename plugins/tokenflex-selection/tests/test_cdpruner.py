import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflex.contracts import Grid, Instruction, VisualTokens
from tokenflex.errors import ConfigError, InputError
from tokenflex.ops.keeping import kept_count
from tokenflex.testing import cases
from tokenflex_selection import CDPrunerScaler

Config = CDPrunerScaler.Config


@pytest.mark.parametrize("case", [*cases(Config()), *cases(Config(theta=0.0)), *cases(Config(theta=0.9))], ids=str)
def test_conformance(case):
    case()


def test_by_hand(tiny, kept):
    # The word points to 0 degrees, tokens to 0, 60, 90 and 180: cosines 1, 0.5, 0, -1, scaled r = 1, 0.75, 0.5, 0.
    # Diagonal r^2 = 1, 0.5625, 0.25, 0: token 0 comes first. What it leaves of the others is r^2 * (1 - c^2):
    # 0.5625 * 0.75 = 0.42, 0.25 * 1 = 0.25, 0: token 1 comes second. The plane is full, the rest goes by index.
    image = tiny(polar(0, 60, 90, 180), words=[[1, 0]])
    levels = Config(ratios=(0.25, 0.5, 0.75, 1.0)).build().pyramid(image)
    assert [kept(level)[0] for level in levels[:3]] == [[0], [0, 1], [0, 1, 2]]


def test_words_decide(tiny, kept):
    # Without words all diagonals are 1: token 0, then the one at a right angle to it.
    angles = polar(0, 60, 90, 180)
    scaler = Config(ratios=(0.5, 1.0)).build()
    assert kept(scaler.scale(tiny(angles, words=[]), 0)) == [[0, 2]]
    assert kept(scaler.scale(tiny(angles, words=[[-1, 0]]), 0)) == [[2, 3]]
    plain = Config(ratios=(0.5, 1.0), theta=0.0).build()
    assert kept(plain.scale(tiny(angles, words=[[-1, 0]]), 0)) == [[0, 2]]


def polar(*angles):
    return [[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles]


@given(
    grid=st.builds(Grid, st.integers(1, 5), st.integers(1, 6)),
    seed=st.integers(0, 99),
    theta=st.sampled_from([None, 0.0, 0.5]),
)
def test_laws(laws, grid, seed, theta):
    # Six dimensions: beyond six tokens those left are combinations of kept ones and go by index.
    ratios = (1 / grid.tokens, min(6 / grid.tokens, 1.0), 1.0)
    # Without relevance all tokens tie for the first place.
    laws(Config(ratios=ratios, theta=theta), grid, seed, permutable=theta != 0.0)
    laws(Config(theta=theta), grid, seed, permutable=False)


def test_stays_on_the_device(laws):
    laws.stay_on_device(Config())


def test_equal_tokens_go_by_index(palette, kept):
    image, first = palette
    five, eight, _ = Config(ratios=(5 / 24, 8 / 24, 1.0)).build().pyramid(image)
    assert kept(five) == [first]
    assert kept(eight) == [sorted([*first, 1, 3, 5])]


@given(seed=st.integers(0, 99), dim=st.sampled_from([8, 33, 100]))
@settings(max_examples=60)
def test_equal_tokens_go_by_index_on_any_palette(kept, seed, dim):
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(6, dim, generator=generator)
    which = torch.cat([torch.randint(0, 6, (45,), generator=generator), torch.arange(6), torch.arange(6)])
    words = Instruction(torch.randn(3, dim, generator=generator), torch.ones(3, dtype=torch.bool))
    image = VisualTokens(colours[which][None], Grid(3, 19), instruction=words)
    first = sorted(which.tolist().index(colour) for colour in range(6))
    assert kept(Config(ratios=(6 / 57, 1.0), theta=0.3).build().scale(image, 0)) == [first]


def test_masked_words_are_inert(image):
    one_image, scaler = image(Grid(4, 5)), Config().build()
    words = one_image.instruction
    for value in (9.0, float("nan"), float("inf")):
        poisoned = words.embeddings.masked_fill(~words.mask[..., None], value)
        padding = torch.full((2, 3, 6), value)
        longer = Instruction(
            torch.cat([poisoned, padding], 1), torch.cat([words.mask, torch.zeros(2, 3, dtype=torch.bool)], 1)
        )
        for level in range(4):
            found = scaler.scale(replace(one_image, instruction=longer), level)
            assert torch.equal(found.assignment, scaler.scale(one_image, level).assignment)


def test_all_words_masked_is_no_words(image):
    one_image, scaler = image(Grid(4, 5)), Config().build()
    words = one_image.instruction
    none = Instruction(words.embeddings[:, :0], words.mask[:, :0])
    masked = Instruction(words.embeddings, torch.zeros_like(words.mask))
    for level in range(4):
        first, second = (scaler.scale(replace(one_image, instruction=given), level) for given in (none, masked))
        assert torch.equal(first.assignment, second.assignment)


def test_extreme_theta_orders_by_relevance(image, kept):
    one_image = image(Grid(4, 5))
    words, mask = one_image.instruction.embeddings, one_image.instruction.mask
    scaled = Config(ratios=(0.15, 1.0), theta=0.9999).build().scale(one_image, 0)
    for view, found in enumerate(kept(scaled)):
        item = view // 2
        unit = torch.nn.functional.normalize
        cosines = unit(one_image.features.flatten(0, 1)[view], dim=-1) @ unit(words[item][mask[item]], dim=-1).T
        assert found == sorted(cosines.mean(-1).argsort(descending=True)[:3].tolist())


def loop(rows, words, count, theta):
    """The catalogue's greedy Cholesky on the whole kernel, in Python's floats."""

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    n = len(rows)
    means = [sum(cosine(row, word) for word in words) / len(words) for row in rows]
    r = [(m - min(means)) / (max(means) - min(means)) for m in means]
    if theta is not None:
        r = [math.exp(theta / (2 * (1 - theta)) * value) for value in r]
    kernel = [[r[i] * cosine(rows[i], rows[j]) * r[j] for j in range(n)] for i in range(n)]
    left = [kernel[i][i] for i in range(n)]
    u = [[] for _ in range(n)]
    picked = []
    while len(picked) < count:
        free = [i for i in range(n) if i not in picked]
        useful = [i for i in free if left[i] > 1e-5 * kernel[i][i]]
        j = max(useful, key=lambda i: round(left[i], 9)) if useful else free[0]
        picked.append(j)
        if not useful:
            continue
        e = [
            (kernel[j][i] - sum(a * b for a, b in zip(u[j], u[i], strict=True))) / math.sqrt(left[j]) for i in range(n)
        ]
        for i in range(n):
            u[i].append(e[i])
            left[i] -= e[i] ** 2
    return sorted(picked)


@pytest.mark.parametrize("theta", [None, 0.0, 0.5, 0.9])
@pytest.mark.parametrize("grid", [Grid(4, 5), Grid(1, 9)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_a_loop(image, kept, grid, seed, theta):
    one_image, scaler = image(grid, seed), Config(theta=theta).build()
    words = [given[:-1] for given in one_image.instruction.embeddings.tolist()]
    for ratio, level in zip(scaler.ratios[:-1], scaler.pyramid(one_image), strict=False):
        count = kept_count(ratio, grid.tokens)
        views = enumerate(one_image.features.flatten(0, 1).tolist())
        assert kept(level) == [loop(rows, words[view // 2], count, theta) for view, rows in views]


def test_relevance_is_scaled_view_by_view_unlike_the_released_code(tiny, kept):
    # Two views. By themselves the relevances are scaled to 0..1 each. The released code scales them over all views, so
    # that the least relevant token of a view needn't have weight 0: what is kept of a view then depends on the others.
    def released(r, c, count):
        left, picked = [r[i] ** 2 for i in range(len(r))], []
        u = [[] for _ in r]
        while len(picked) < count:
            j = max((i for i in range(len(r)) if i not in picked), key=lambda i: left[i])
            picked.append(j)
            e = [
                (r[j] * c[j][i] * r[i] - sum(a * b for a, b in zip(u[j], u[i], strict=True))) / math.sqrt(left[j])
                for i in range(len(r))
            ]
            left = [one - x * x for one, x in zip(left, e, strict=True)]
            u = [[*before, x] for before, x in zip(u, e, strict=True)]
        return sorted(picked)

    def at(degrees):
        return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]

    angles = ([60, 65, 80, 89], [0, 30, 60, 180])  # to the only word, which lies at 0 degrees
    means = [[math.cos(math.radians(a)) for a in view] for view in angles]
    low, high = min(map(min, means)), max(map(max, means))
    cosines = [[[math.cos(math.radians(a - b)) for b in view] for a in view] for view in angles]
    one, other = (
        [[(m - lo) / (hi - lo) for m in view] for view, lo, hi in zip(means, *ends, strict=True)]
        for ends in (([min(v) for v in means], [max(v) for v in means]), ([low] * 2, [high] * 2))
    )
    ours = [released(r, c, 2) for r, c in zip(one, cosines, strict=True)]
    theirs = [released(r, c, 2) for r, c in zip(other, cosines, strict=True)]
    assert ours != theirs
    for view, expected in zip(angles, ours, strict=True):
        assert kept(Config(ratios=(0.5, 1.0)).build().scale(tiny([at(a) for a in view], words=[[1, 0]]), 0)) == [
            expected
        ]


def step_by_step(similarity, log_weights, count):
    """Pick by pick, with a mask of what is taken, and every token's order of merit spelled out."""
    left = similarity.diagonal(dim1=-2, dim2=-1)
    enough = 1e-5 * left
    taken = torch.zeros_like(left, dtype=torch.bool)
    factors, picks = [], []
    for _ in range(count):
        score = torch.where(left > enough, left.clamp(min=1e-30).log() + log_weights, -1e30).clamp(min=-1e30)
        score = score.masked_fill(taken, float("-inf"))
        pick = (score >= score.amax(-1, keepdim=True) - 1e-6).int().argmax(-1, keepdim=True)
        picks.append(pick)
        taken = taken.scatter(-1, pick, True)
        factor = similarity.gather(-2, pick[..., None].expand(*pick.shape, left.shape[-1])).squeeze(-2)
        for earlier in factors:
            factor = factor - earlier * earlier.gather(-1, pick)
        room, needed = left.gather(-1, pick), enough.gather(-1, pick)
        factors.append(torch.where(room > needed, factor / room.clamp(min=1e-30).sqrt(), 0.0))
        left = left - factors[-1].square()
    return torch.cat(picks, dim=-1)


@pytest.mark.parametrize("theta", [None, 0.0, 0.5])
@pytest.mark.parametrize(("grid", "dim"), [(Grid(6, 7), 40), (Grid(16, 18), 160)], ids=str)
@pytest.mark.parametrize("kind", ["random", "alike", "zero rows", "palette"])
def test_the_order_is_that_of_the_step_by_step_form(image, kind, grid, dim, theta):
    one_image, scaler = image(grid, 3, dim=dim), Config(theta=theta).build()
    features = one_image.features
    if kind == "alike":
        features = features + 3 * features[..., :1, :]
    elif kind == "zero rows":
        features = features * (torch.arange(grid.tokens) % 5 > 0)[:, None]
    elif kind == "palette":
        features = features[..., torch.arange(grid.tokens) * 7 % 11, :]
    one_image = replace(one_image, features=features)
    count = grid.tokens // 4
    unit = torch.nn.functional.normalize(features, dim=-1)
    words = torch.nn.functional.normalize(one_image.instruction.embeddings[:, None, :-1], dim=-1)
    mean = (unit @ words.mT).mean(-1)
    low, high = mean.amin(-1, keepdim=True), mean.amax(-1, keepdim=True)
    relevance = (mean - low) / (high - low)
    weights = 2 * (relevance.log() if theta is None else theta / (2 * (1 - theta)) * relevance)
    expected = step_by_step(unit @ unit.mT, weights, count)
    assert torch.equal(scaler.order(one_image, count), expected)


@pytest.mark.parametrize("theta", [-0.1, 1.0, math.nan])
def test_refusals(tiny, theta):
    with pytest.raises(ConfigError, match=r"must be at least 0 and below 1|must be a finite number or None"):
        Config(theta=theta).build()
    with pytest.raises(InputError, match=r"VisualTokens\.instruction"):
        Config().build().scale(tiny([[1, 0]] * 4), 0)
