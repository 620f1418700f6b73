"""Density peaks: densities, centres, clusters."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflex.contracts import Grid, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.testing import cases, check_component
from tokenflex_matching.density_peaks import DensityPeaksScaler, distances, peaks

GRIDS = st.builds(Grid, st.integers(1, 5), st.integers(1, 6))
CONFIGS = [
    DensityPeaksScaler.Config(),
    DensityPeaksScaler.Config(neighbours=1),
    DensityPeaksScaler.Config(neighbours=1000, ratios=(0.1, 0.35, 0.6, 0.9, 1.0)),
    DensityPeaksScaler.Config(ratios=(1.0,)),
]


def transcribed(features, kept, neighbours):
    """The assignment, by the formula."""
    tokens = range(len(features))

    def distance(i, j):
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(features[i], features[j], strict=True)) / len(features[i]))

    density = []
    for i in tokens:
        near = sorted(distance(i, j) ** 2 for j in tokens if j != i)[:neighbours]
        density.append(math.exp(-sum(near) / len(near)))
    score = []
    for i in tokens:
        denser = [j for j in tokens if density[j] > density[i] or (density[j] == density[i] and j < i)]
        separation = min(distance(i, j) for j in denser) if denser else max(distance(i, j) for j in tokens)
        score.append(density[i] * separation)
    centres = sorted(sorted(tokens, key=lambda i: (-score[i], i))[:kept])
    return [
        centres.index(i) if i in centres else min(range(kept), key=lambda n: (distance(i, centres[n]), n))
        for i in tokens
    ]


def test_worked_example():
    # On a line, one neighbour: every nearest one is 2 away, squared mean over two channels 4/2 = 2, so all densities
    # are exp(-2), and lower indices count as denser. Separations: 0 has its greatest distance, 12/sqrt(2);
    # 1 is 2/sqrt(2) from 0; 2 is 8/sqrt(2) from 1; 3 is 2/sqrt(2) from 2. Centres of two: 0 and 2; of three: also 1.
    features = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [10.0, 0.0], [12.0, 0.0]]])
    image = VisualTokens(features, Grid(2, 2))
    two, three, _ = DensityPeaksScaler(DensityPeaksScaler.Config(ratios=(0.5, 0.75, 1.0), neighbours=1)).pyramid(image)
    assert two.assignment.tolist() == [[0, 0, 1, 1]]
    assert two.features.tolist() == [[[1.0, 0.0], [11.0, 0.0]]]
    assert two.averages
    assert three.assignment.tolist() == [[0, 1, 2, 2]]
    assert three.features.tolist() == [[[0.0, 0.0], [2.0, 0.0], [11.0, 0.0]]]


def test_densities_too_small_for_float32_are_still_compared():
    # exp(-45000) twice, then exp(-20000) twice: all 0 in float32. 2 is densest, with the greatest distance 1000; 3 is
    # 200 from 2; 0 is 1000 from 2; 1 is 300 from 0, which counts as denser. (Distances before the mean over channels.)
    features = torch.tensor([[0.0, 0.0], [300.0, 0.0], [1000.0, 0.0], [1200.0, 0.0]])
    assert peaks(distances(features), 1).tolist() == [2, 3, 0, 1]


def test_ties_go_to_lower_indices():
    # All distances are 0: the first tokens are centres, everyone else goes to the first of them.
    scaler = DensityPeaksScaler(DensityPeaksScaler.Config(ratios=(0.5, 1.0)))
    scaled = scaler.scale(VisualTokens(torch.zeros(2, 1, 6, 2), Grid(1, 6)), 0)
    assert scaled.assignment.tolist() == [[[0, 1, 2, 0, 0, 0]]] * 2


def test_equal_tokens_never_leave_a_centre_alone_without_itself():
    features = torch.tensor([1.0, 2.0]).expand(1, 8, 2).clone()
    features[:, 4:] = 3.0
    for level in DensityPeaksScaler(DensityPeaksScaler.Config()).pyramid(VisualTokens(features, Grid(2, 4))):
        assert level.assignment.unique().tolist() == list(range(level.features.shape[-2]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.sampled_from([0.0, 1.0, 100.0]))
def test_distances(seed, shift):
    features = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(seed)) + shift
    plain = (features.double()[:, :, None] - features.double()[:, None]).square().mean(-1).sqrt()
    apart = distances(features)
    assert torch.allclose(apart.double(), plain, atol=1e-5)
    assert torch.equal(apart, apart.mT)
    assert not bool(distances(features[:, :1].expand(2, 40, 5)).any())


@pytest.mark.parametrize("grid", [Grid(2, 3), Grid(5, 5), Grid(3, 7), Grid(8, 8)], ids=str)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("neighbours", [1, 5, 100])
def test_transcription(make_image, grid, seed, neighbours):
    image = make_image(grid, seed, leading=(2, 2))
    scaler = DensityPeaksScaler(DensityPeaksScaler.Config(neighbours=neighbours))
    for scaled in scaler.pyramid(image)[:-1]:
        kept = scaled.features.shape[-2]
        for batch in range(2):
            for view in range(2):
                source = image.features[batch, view].double()
                into = transcribed(source.tolist(), kept, neighbours)
                assert scaled.assignment[batch, view].tolist() == into
                means = torch.stack([source[torch.tensor(into) == number].mean(0) for number in range(kept)])
                assert torch.allclose(scaled.features[batch, view].double(), means, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 1000), config=st.sampled_from(CONFIGS))
def test_laws(make_image, blank, check_laws, grid, seed, config):
    image = make_image(grid, seed, leading=(2, 2))
    check_laws(DensityPeaksScaler(config), image)
    check_laws(DensityPeaksScaler(config), blank(image))


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 5), cols=st.integers(3, 6), seed=st.integers(0, 1000))
def test_permutation(make_image, check_permutation, rows, cols, seed):
    # Where two tokens are each other's nearest, a single neighbour makes them equally dense: five keep ties away.
    check_permutation(
        DensityPeaksScaler(DensityPeaksScaler.Config(neighbours=4)), make_image(Grid(rows, cols), seed), seed
    )


def test_decisions_stay_on_the_device(make_image, check_shapes_alone):
    for config in CONFIGS:
        check_shapes_alone(DensityPeaksScaler(config), make_image(Grid(5, 7), leading=(2, 2)))


@pytest.mark.parametrize("case", [case for config in CONFIGS for case in cases(config)], ids=str)
def test_conformance(case):
    case()


def test_conformance_is_complete():
    check_component(DensityPeaksScaler.Config()).raise_if_bad()


@pytest.mark.parametrize("wrong", [0, -3, True])
def test_refusals(wrong):
    with pytest.raises(ConfigError, match=rf"neighbours={wrong} (is no count; use|of \w+ must be) an integer"):
        DensityPeaksScaler(DensityPeaksScaler.Config(neighbours=wrong))


def test_refuses_ratios():
    with pytest.raises(ConfigError, match="must end with 1"):
        DensityPeaksScaler(DensityPeaksScaler.Config(ratios=()))
