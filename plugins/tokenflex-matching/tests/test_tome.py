"""ToMe: pairs, rounds, schedule."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflex.contracts import Grid, VisualTokens
from tokenflex.errors import ConfigError, InputError
from tokenflex.ops.keeping import in_grid_order
from tokenflex.testing import cases, check_component
from tokenflex_matching.tome import ToMeScaler

GRIDS = st.builds(Grid, st.integers(1, 5), st.integers(1, 6))
CONFIGS = [
    ToMeScaler.Config(),
    ToMeScaler.Config(metric="keys"),
    ToMeScaler.Config(ratios=(0.1, 0.35, 0.6, 0.9, 1.0)),
    ToMeScaler.Config(ratios=(1.0,)),
]


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return round(dot / lengths * 65536) / 65536


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def transcribed(vectors, kept):
    """The groups, by the formula."""
    groups = [[i] for i in range(len(vectors))]
    while len(groups) > kept:
        merges = min(len(groups) - kept, len(groups) // 2)
        means = [mean([vectors[i] for i in group]) for group in groups]
        pairs = []
        for a in range(0, len(groups), 2):
            best = None
            for b in range(1, len(groups), 2):
                similarity = cosine(means[a], means[b])
                if best is None or similarity > best[0]:
                    best = (similarity, b)
            pairs.append((-best[0], a, best[1]))
        gone = set()
        for _, a, b in sorted(pairs)[:merges]:
            groups[b] = groups[b] + groups[a]
            gone.add(a)
        groups = sorted(sorted(group) for i, group in enumerate(groups) if i not in gone)
    return groups


def test_worked_example():
    # Angles in degrees; A = {0, 2, 4}, B = {1, 3, 5}. Round one: 0 and 4 are 10 degrees from 1, and 2 is 10 from 3:
    # {0, 1, 4} at 10, {2, 3} at 95, {5} at 175. Round two merges one pair; A = {first, third}, B = {second}:
    # 10 is 85 degrees from 95, 175 is 80 from it, so 5 joins {2, 3}.
    degrees = torch.tensor([0.0, 10, 90, 100, 20, 175]).deg2rad()
    features = torch.stack([degrees.cos(), degrees.sin()], -1)[None]
    scaler = ToMeScaler(ToMeScaler.Config(ratios=(1 / 3, 1 / 2, 1.0)))
    two, three, six = scaler.pyramid(VisualTokens(features, Grid(2, 3)))
    assert three.assignment.tolist() == [[0, 0, 1, 1, 0, 2]]
    assert two.assignment.tolist() == [[0, 0, 1, 1, 0, 1]]
    means = torch.stack([features[0, [0, 1, 4]].mean(0), features[0, [2, 3, 5]].mean(0)])
    assert torch.allclose(two.features[0], means, atol=1e-6)
    assert two.averages
    assert torch.equal(six.features, features)


def test_only_as_many_pairs_as_needed():
    # 2 and 3 are equal, 0 and 1 nearly: one merge takes the former.
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 2.0]]])
    scaled = ToMeScaler(ToMeScaler.Config(ratios=(0.75, 1.0))).scale(VisualTokens(features, Grid(1, 4)), 0)
    assert scaled.assignment.tolist() == [[0, 1, 2, 2]]
    assert scaled.features.tolist() == [[[1.0, 0.0], pytest.approx([1.0, 0.1]), [0.0, 1.5]]]


def test_ties_go_to_lower_indices():
    # All equal: the first two of A = {0, 2, 4} merge, both with the first of B.
    features = torch.tensor([1.0, 0.0]).expand(2, 3, 6, 2)
    scaled = ToMeScaler(ToMeScaler.Config(ratios=(2 / 3, 1.0))).scale(VisualTokens(features, Grid(1, 6)), 0)
    assert scaled.assignment.tolist() == [[[0, 0, 0, 1, 2, 3]] * 3] * 2


@pytest.mark.parametrize("grid", [Grid(2, 3), Grid(5, 5), Grid(3, 7), Grid(8, 8)], ids=str)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("metric", ["features", "keys"])
def test_transcription(make_image, grid, seed, metric):
    image = make_image(grid, seed, leading=(2, 2))
    vectors = (image.features if metric == "features" else image.keys).double()
    scaler = ToMeScaler(ToMeScaler.Config(ratios=(1 / 16, 0.2, 0.4, 0.7, 1.0), metric=metric))
    for scaled in scaler.pyramid(image):
        for batch in range(2):
            for view in range(2):
                groups = transcribed(vectors[batch, view].tolist(), scaled.features.shape[-2])
                into = scaled.assignment[batch, view].tolist()
                assert [[i for i, n in enumerate(into) if n == number] for number in range(len(groups))] == groups
                means = torch.tensor([mean(image.features[batch, view, group].tolist()) for group in groups])
                assert torch.allclose(scaled.features[batch, view], means, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 1000), config=st.sampled_from(CONFIGS))
def test_laws(make_image, blank, check_laws, grid, seed, config):
    image = make_image(grid, seed, leading=(2, 2))
    check_laws(ToMeScaler(config), image)
    check_laws(ToMeScaler(config), blank(image))


@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 1000), ratio=st.floats(0.01, 1))
def test_levels_share_rounds_exactly_whatever_the_others(make_image, grid, seed, ratio):
    image = make_image(grid, seed)
    alone = ToMeScaler(ToMeScaler.Config(ratios=(ratio, 1.0))).scale(image, 0)
    among = sorted({ratio, 0.07, 0.3, 0.5, 0.8, 1.0})
    together = ToMeScaler(ToMeScaler.Config(ratios=tuple(among))).pyramid(image)[among.index(ratio)]
    assert torch.equal(alone.assignment, together.assignment)
    assert torch.equal(alone.features, together.features)


@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 1000))
def test_order_is_the_grid_s_and_length_is_nothing(make_image, grid, seed):
    # Which tokens form A and B depends on their order, so that a permutation of tokens may change the groups.
    # Cosines don't depend on a common factor, nor on the order of the channels.
    image = make_image(grid, seed)
    turned = replace(image, features=4 * image.features.flip(-1))
    scaler = ToMeScaler(ToMeScaler.Config())
    for level, scaled in enumerate(scaler.pyramid(image)):
        assert torch.equal(in_grid_order(scaled.assignment, scaled.features.shape[-2]), scaled.assignment)
        assert torch.equal(scaler.scale(turned, level).assignment, scaled.assignment)


def test_keys_alone_decide_where_asked_for(make_image):
    image, other = make_image(Grid(4, 4)), make_image(Grid(4, 4), seed=1)
    scaler = ToMeScaler(ToMeScaler.Config(metric="keys"))
    assert scaler.needs == {"keys"}
    assert ToMeScaler(ToMeScaler.Config()).needs == frozenset()
    for level in range(4):
        swapped = scaler.scale(replace(image, features=other.features), level)
        assert torch.equal(swapped.assignment, scaler.scale(image, level).assignment)


def test_decisions_stay_on_the_device(make_image, check_shapes_alone):
    for config in CONFIGS:
        check_shapes_alone(ToMeScaler(config), make_image(Grid(5, 7), leading=(2, 2)))


@pytest.mark.parametrize("case", [case for config in CONFIGS for case in cases(config)], ids=str)
def test_conformance(case):
    case()


def test_conformance_is_complete():
    check_component(ToMeScaler.Config()).raise_if_bad()


def test_refusals(make_image):
    with pytest.raises(ConfigError, match=r"metric='values' is none of 'features', 'keys'; use one"):
        ToMeScaler(ToMeScaler.Config(metric="values"))
    with pytest.raises(ConfigError, match="must end with 1"):
        ToMeScaler(ToMeScaler.Config(ratios=(0.5,)))
    with pytest.raises(InputError, match=r"this image has none\. Use metric='features'"):
        ToMeScaler(ToMeScaler.Config(metric="keys")).scale(replace(make_image(Grid(2, 2)), keys=None), 0)
