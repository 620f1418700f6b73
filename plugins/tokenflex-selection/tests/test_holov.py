import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError, InputError
from tokenflex.ops.keeping import kept_count
from tokenflex.testing import cases
from tokenflex_selection import HoloVScaler
from tokenflex_selection.apportion import apportion

Config = HoloVScaler.Config


@pytest.mark.parametrize("case", [*cases(Config()), *cases(Config(crops=(2, 3), temperature=5.0))], ids=str)
def test_conformance(case):
    case()


def test_by_hand(tiny, kept):
    # One row of six, two crops of three; diversity off. Attention over its largest, 0.8:
    # 1 0.5 0.25 | 0.25 0.125 0.125; totals 1.75 and 0.5; softmax 0.777 and 0.223.
    # Of four tokens 3.11 and 0.89: the first crop can only give three, so it is three and one.
    # Of three: 2.33 and 0.67, whole 2 and 0, the larger remainder is the second: two and one.
    # Of two: 1.55 and 0.45: whole 1 and 0, the larger remainder is the first: two and none.
    image = tiny([[1, 0]] * 6, attention=[0.2, 0.4, 0.8, 0.1, 0.2, 0.1])
    scaler = Config(ratios=(2 / 6, 3 / 6, 4 / 6, 1.0), crops=(1, 2), diversity=0.0).build()
    assert [kept(level)[0] for level in scaler.pyramid(image)[:3]] == [[1, 2], [1, 2, 4], [0, 1, 2, 4]]


def test_diversity_by_hand(tiny, kept):
    # One crop of four, equal attention. Mean cosines to the others: 0, (1 + 0 + 0) / 3; token 2: (0 + 0 - 1) / 3;
    # token 3: (0 + 0 - 1) / 3, so 1 - 1/3, 1 - 1/3, 1 + 1/3, 1 + 1/3.
    image = tiny([[1, 0], [1, 0], [0, 1], [0, -1]], attention=[0.5] * 4)
    assert kept(Config(ratios=(0.5, 1.0), crops=(1, 1)).build().scale(image, 0)) == [[2, 3]]


@given(
    grid=st.builds(Grid, st.integers(1, 6), st.integers(1, 7)),
    seed=st.integers(0, 99),
    crops=st.sampled_from([(1, 1), (2, 2), (4, 4), (3, 1)]),
)
def test_laws(laws, grid, seed, crops):
    # Crops belong to places, so there is no law about permutations; quotas aren't nested.
    laws(Config(crops=crops), grid, seed, permutable=False, nested=False)


@given(seed=st.integers(0, 99))
def test_order_inside_a_crop_is_nothing(image, kept, seed):
    one_image, scaler = image(Grid(4, 4), seed), Config(crops=(2, 2)).build()
    # In each crop of 2 x 2, the rows change places.
    order = [4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11]
    moved = replace(one_image, features=one_image.features[..., order, :], attention=one_image.attention[..., order])
    for level in range(4):
        for before, after in zip(kept(scaler.scale(one_image, level)), kept(scaler.scale(moved, level)), strict=True):
            assert sorted(order[place] for place in after) == before


def test_stays_on_the_device(laws):
    laws.stay_on_device(Config())


def test_no_attention_at_all(tiny, kept):
    image = tiny([[1, 0]] * 8, attention=[0.0] * 8, grid=Grid(2, 4))
    assert kept(Config(crops=(1, 2)).build().scale(image, 3)) == [[0, 1, 2, 3]]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    sharpness=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
)
def test_apportioning(sizes, share, seed, sharpness):
    count = max(round(share * sum(sizes)), 1)
    logits = sharpness * torch.randn(3, len(sizes), generator=torch.Generator().manual_seed(seed))
    found = apportion(logits.softmax(-1), torch.tensor(sizes), count)
    assert found.sum(-1).tolist() == [count] * 3
    assert bool((found >= 0).all())
    assert bool((found <= torch.tensor(sizes)).all())


def quotas(weights, sizes, count):
    """Fill whoever is offered more than there is, share out the rest, then the largest remainders."""
    full = set()
    while True:
        left = count - sum(sizes[p] for p in full)
        total = sum(w for p, w in enumerate(weights) if p not in full)
        shares = [sizes[p] if p in full else left * w / total for p, w in enumerate(weights)]
        over = {p for p in range(len(sizes)) if p not in full and shares[p] > sizes[p]}
        if not over:
            break
        full |= over
    found = [math.floor(share) for share in shares]
    for p in sorted(range(len(sizes)), key=lambda p: found[p] - shares[p])[: count - sum(found)]:
        found[p] += 1
    return found


@pytest.mark.parametrize("seed", range(8))
def test_apportioning_against_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (6,), generator=generator)
    weights = (2 * torch.randn(6, generator=generator)).softmax(-1)
    for count in range(1, int(sizes.sum()) + 1):
        assert apportion(weights, sizes, count).tolist() == quotas(weights.tolist(), sizes.tolist(), count)


def loop(rows, attention, grid, count, config):
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    high, wide = math.ceil(grid.rows / config.crops[0]), math.ceil(grid.cols / config.crops[1])
    crops = {}
    for i in range(grid.tokens):
        row, col = divmod(i, grid.cols)
        crops.setdefault((row // high, col // wide), []).append(i)
    scores = {}
    for crop in crops.values():
        for i in crop:
            others = [cosine(rows[i], rows[j]) for j in crop if j != i]
            mean = sum(others) / len(others) if others else 0.0
            scores[i] = attention[i] / max(attention) + config.diversity * (1 - mean)
    places = sorted(crops)
    totals = [sum(scores[i] for i in crops[p]) / config.temperature for p in places]
    exps = [math.exp(total - max(totals)) for total in totals]
    shares = quotas([e / sum(exps) for e in exps], [len(crops[p]) for p in places], count)
    picked = []
    for place, quota in zip(places, shares, strict=True):
        picked += sorted(crops[place], key=lambda i: -scores[i])[:quota]
    return sorted(picked)


@pytest.mark.parametrize("config", [Config(), Config(crops=(2, 3), diversity=0.3, temperature=4.0)])
@pytest.mark.parametrize("grid", [Grid(6, 7), Grid(5, 5), Grid(1, 9)])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_a_loop(image, kept, grid, seed, config):
    one_image, scaler = image(grid, seed), config.build()
    features, attention = one_image.features.flatten(0, 1), one_image.attention.flatten(0, 1)
    views = list(zip(features.tolist(), attention.tolist(), strict=True))
    for ratio, level in zip(scaler.ratios[:-1], scaler.pyramid(one_image), strict=False):
        count = kept_count(ratio, grid.tokens)
        assert kept(level) == [loop(*view, grid, count, config) for view in views]


def all_pairs(one_image, config, count):
    """The same choice from the cosines of all tokens with all."""
    grid, attention = one_image.grid, one_image.attention
    high, wide = math.ceil(grid.rows / config.crops[0]), math.ceil(grid.cols / config.crops[1])
    place = torch.arange(grid.tokens)
    crop = place // grid.cols // high * math.ceil(grid.cols / wide) + place % grid.cols // wide
    together = crop[:, None] == crop
    others = together & ~torch.eye(grid.tokens, dtype=torch.bool)
    unit = torch.nn.functional.normalize(one_image.features, dim=-1)
    mean = torch.where(others, unit @ unit.mT, 0.0).sum(-1) / others.sum(-1).clamp(min=1)
    scores = attention / attention.amax(-1, keepdim=True) + config.diversity * (1 - mean)
    members = crop[:, None] == crop.unique()
    totals = torch.where(members, scores[..., None], 0.0).sum(-2) / config.temperature
    quota = apportion(totals.softmax(-1), members.sum(0), count)
    other, own = scores[..., None, :], scores[..., None]
    before = together & ((other > own) | ((other == own) & (place < place[:, None])))
    return before.sum(-1) < quota[..., crop]


@pytest.mark.parametrize(
    "config", [Config(), Config(crops=(2, 3), diversity=0.3, temperature=4.0), Config(crops=(99, 99))], ids=str
)
@pytest.mark.parametrize(("grid", "dim"), [(Grid(5, 7), 6), (Grid(13, 12), 64), (Grid(24, 24), 96)], ids=str)
@pytest.mark.parametrize("kind", ["random", "alike", "zero rows"])
def test_the_choice_is_that_of_all_pairs(image, kind, grid, dim, config):
    one_image, scaler = image(grid, 5, dim=dim), config.build()
    features = one_image.features
    if kind == "alike":
        features = features + 3 * features[..., :1, :]
    elif kind == "zero rows":
        features = features * (torch.arange(grid.tokens) % 5 > 0)[:, None]
    one_image = replace(one_image, features=features)
    for ratio, level in zip(scaler.ratios[:-1], scaler.pyramid(one_image), strict=False):
        expected = all_pairs(one_image, config, kept_count(ratio, grid.tokens))
        assert torch.equal(level.assignment >= 0, expected)


def test_the_released_form_chooses_otherwise(tiny, kept):
    # 4 x 4 tokens, four crops. The released code's crops are stretches of the row-major order, here the rows: tokens 0
    # and 3 compete there, and lie in crops of their own here. But for their attention all tokens are alike.
    attention = [0.9, 0.1, 0.1, 0.8] + [0.1] * 4 + [0.5, 0.1, 0.1, 0.4] + [0.1] * 4
    image = replace(tiny([[1, 0]] * 16, attention=attention), grid=Grid(4, 4))
    config = Config(ratios=(4 / 16, 1.0), crops=(2, 2), diversity=0.0, temperature=100.0)
    assert kept(config.build().scale(image, 0)) == [[0, 3, 8, 11]]
    runs = sorted(max(range(4 * i, 4 * i + 4), key=lambda place: attention[place]) for i in range(4))
    assert runs == [0, 4, 8, 12]


def test_equal_tokens_of_a_crop_go_by_index(tiny, kept):
    # Two crops of eight, each with two colours and equal attention: in each, the first of the rarer colour.
    rare, common = [1.0, 0.3, 0.7], [0.2, -0.9, 0.4]
    image = tiny([common] * 3 + [rare] * 2 + [common] * 6 + [rare] * 2 + [common] * 3, attention=[0.3] * 16)
    scaler = Config(ratios=(2 / 16, 6 / 16, 1.0), crops=(1, 2)).build()
    assert kept(scaler.scale(image, 0)) == [[3, 11]]
    assert kept(scaler.scale(image, 1)) == [[0, 3, 4, 8, 11, 12]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crops": (0, 4)}, r"crops\[0\]=0 must be an integer"),
        ({"diversity": -1.0}, r"diversity=-1\.0 must be a finite number"),
        ({"temperature": 0.0}, r"temperature=0\.0 must be a finite number above 0"),
    ],
)
def test_refusals(tiny, settings, message):
    with pytest.raises(ConfigError, match=message):
        Config(**settings).build()
    with pytest.raises(InputError, match=r"VisualTokens\.attention"):
        Config().build().scale(tiny([[1, 0]] * 4), 0)


def test_crops_are_a_pair():
    with pytest.raises(ConfigError, match=r"crops=\(4,\) of HoloVScaler must be a tuple of an integer, an integer"):
        Config(crops=(4,))
