"""PruMerge and PruMerge+: who is kept, what kept tokens take in, what the appended token is."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflex.contracts import Grid, VisualTokens
from tokenflex.errors import ConfigError, InputError
from tokenflex.testing import cases, check_component
from tokenflex_matching.prumerge import PruMergePlusScaler, PruMergeScaler
from tokenflex_matching.spatial_sample import spread

GRIDS = st.builds(Grid, st.integers(1, 5), st.integers(1, 6))
CONFIGS = [
    PruMergeScaler.Config(),
    PruMergeScaler.Config(append=False, metric="keys", neighbours=3),
    PruMergePlusScaler.Config(),
    PruMergePlusScaler.Config(append=False, ratios=(0.1, 0.35, 0.6, 0.9, 1.0), neighbours=1),
    PruMergePlusScaler.Config(spatial=1.0),
    PruMergeScaler.Config(metric="keys", weights="attention"),
    PruMergePlusScaler.Config(weights="attention", append=False),
]


def build(config):
    return type(config).owner(config)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return dot / lengths


def transcribed(features, attention, vectors, kept, config, grid):
    """(assignment, features), by the formula."""
    tokens, dim = range(len(attention)), range(len(features[0]))
    own = kept - 1 if config.append else kept
    places = list(spread(grid, min(math.floor(config.spatial * kept + 0.5), own)))
    for i in sorted(tokens, key=lambda i: (-attention[i], i)):
        if i not in places and len(places) < own:
            places.append(i)
    places.sort()
    total = sum(attention) if config.weights == "shares" else 1.0
    given_out = []
    for i in places:
        others = sorted((j for j in tokens if j != i), key=lambda j: (-cosine(vectors[i], vectors[j]), j))
        near = others[: config.neighbours]
        given_out.append([features[i][d] + sum(attention[j] / total * features[j][d] for j in near) for d in dim])
    assignment = [places.index(i) if i in places else kept - 1 if config.append else -1 for i in tokens]
    if config.append:
        rest = [j for j in tokens if j not in places]
        left = sum(attention[j] for j in rest) if config.weights == "shares" else 1.0
        given_out.append([sum(attention[j] / left * features[j][d] for j in rest) for d in dim])
    return assignment, given_out


FEATURES = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, -1.0]]])
IMAGE = VisualTokens(FEATURES, Grid(2, 2), attention=torch.tensor([[0.4, 0.1, 0.2, 0.3]]))


def test_worked_example_with_appended_token():
    # Two of four: token 0, and the appended one. Nearest to 0 is 2: (1, 0) + 0.2 (2, 0) = (1.4, 0).
    # Appended: (0.1 (0, 1) + 0.2 (2, 0) + 0.3 (0, -1)) / 0.6 = (2/3, -1/3).
    config = PruMergeScaler.Config(ratios=(0.5, 1.0), neighbours=1)
    scaled = PruMergeScaler(config).scale(IMAGE, 0)
    assert scaled.assignment.tolist() == [[0, 1, 1, 1]]
    assert torch.allclose(scaled.features, torch.tensor([[[1.4, 0.0], [2 / 3, -1 / 3]]]))
    assert not scaled.averages


def test_worked_example_without_appended_token():
    # Tokens 0 and 3. 0 as above. 3 is orthogonal to 0 and 2, opposite to 1; the tie goes to 0:
    # (0, -1) + 0.4 (1, 0) = (0.4, -1).
    config = PruMergeScaler.Config(ratios=(0.5, 1.0), neighbours=1, append=False)
    scaled = PruMergeScaler(config).scale(IMAGE, 0)
    assert scaled.assignment.tolist() == [[0, -1, -1, 1]]
    assert torch.allclose(scaled.features, torch.tensor([[[1.4, 0.0], [0.4, -1.0]]]))


def test_one_token_is_the_appended_one():
    # The mean of all, weighted by attention: 0.4 (1, 0) + 0.1 (0, 1) + 0.2 (2, 0) + 0.3 (0, -1).
    scaled = PruMergeScaler(PruMergeScaler.Config(ratios=(0.25, 1.0))).scale(IMAGE, 0)
    assert scaled.assignment.tolist() == [[0, 0, 0, 0]]
    assert torch.allclose(scaled.features, torch.tensor([[[0.8, -0.2]]]))


def test_attention_as_it_is_is_the_released_form():
    # Half of the attention is the class token's own. Released: (1, 0) + 0.1 (2, 0), appended the bare sum
    # 0.05 (0, 1) + 0.1 (2, 0) + 0.15 (0, -1) = (0.2, -0.1). By shares, the same as if it were the patches' alone.
    image = replace(IMAGE, attention=IMAGE.attention / 2)
    settings = {"ratios": (0.5, 1.0), "neighbours": 1}
    scaled = PruMergeScaler(PruMergeScaler.Config(**settings, weights="attention")).scale(image, 0)
    assert torch.allclose(scaled.features, torch.tensor([[[1.2, 0.0], [0.2, -0.1]]]))
    scaled = PruMergeScaler(PruMergeScaler.Config(**settings)).scale(image, 0)
    assert torch.allclose(scaled.features, torch.tensor([[[1.4, 0.0], [2 / 3, -1 / 3]]]))


def released(features, attention, keys, kept, neighbours):
    """The released procedure on one view, plainly; kept tokens in the order of the grid, the appended one last."""
    order = attention.topk(kept - 1).indices
    unit = torch.nn.functional.normalize(keys, dim=-1)
    rows = []
    for i in sorted(order.tolist()):
        others = torch.tensor([j for j in range(len(attention)) if j != i])
        near = others[(unit[others] @ unit[i]).topk(neighbours).indices]
        rows.append(features[i] + (attention[near, None] * features[near]).sum(0))
    left = torch.ones(len(attention)).scatter(0, order, 0.0)
    return torch.stack([*rows, ((left * attention)[:, None] * features).sum(0)])


@pytest.mark.parametrize("leading", [(1, 1), (8, 1)], ids=str)
def test_as_released(make_image, leading):
    image = make_image(Grid(12, 12), 2, leading=leading, dim=32)
    image = replace(image, attention=image.attention.softmax(-1))
    config = PruMergeScaler.Config(ratios=(0.25, 1.0), metric="keys", weights="attention")
    found = PruMergeScaler(config).scale(image, 0).features
    for item in range(leading[0]):
        one = (image.features[item, 0], image.attention[item, 0], image.keys[item, 0])
        assert torch.allclose(found[item, 0], released(*one, 36, 32), atol=1e-5)


@pytest.mark.parametrize(("gap", "near"), [(2e-6, 2), (2e-7, 1)])
def test_what_float32_cannot_tell_apart_goes_by_index(gap, near):
    # A difference from the released form: there the last digit of a product decides. 2 is more like 0 than 1 is.
    angle = math.pi / 4
    features = torch.tensor(
        [[[1.0, 0.0], [math.cos(angle), math.sin(angle)], [math.cos(angle) + 2 * gap, -math.sin(angle)], [-1.0, 0.0]]]
    )
    config = PruMergeScaler.Config(ratios=(0.25, 1.0), neighbours=1, append=False)
    scaled = PruMergeScaler(config).scale(
        VisualTokens(features, Grid(2, 2), attention=torch.tensor([[0.4, 0.2, 0.2, 0.2]])), 0
    )
    assert torch.allclose(scaled.features[0, 0], features[0, 0] + 0.2 * features[0, near])


def test_without_any_attention_all_tokens_weigh_the_same():
    # Token 0 takes in a quarter of its nearest, 2; appended: the plain mean of the others.
    config = PruMergeScaler.Config(ratios=(0.5, 1.0), neighbours=1)
    scaled = PruMergeScaler(config).scale(replace(IMAGE, attention=torch.zeros(1, 4)), 0)
    assert torch.allclose(scaled.features, torch.tensor([[[1.5, 0.0], [2 / 3, 0.0]]]))


def test_all_attention_on_the_kept_token_leaves_the_appended_one_at_the_scale_of_tokens():
    config = PruMergeScaler.Config(ratios=(0.5, 1.0), neighbours=1)
    scaled = PruMergeScaler(config).scale(replace(IMAGE, attention=torch.tensor([[1.0, 0.0, 0.0, 0.0]])), 0)
    assert torch.allclose(scaled.features, torch.tensor([[[1.0, 0.0], [2 / 3, 0.0]]]))


@pytest.mark.parametrize("grid", [Grid(2, 3), Grid(5, 5), Grid(3, 7), Grid(8, 8)], ids=str)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_transcription(make_image, grid, seed, config):
    image = make_image(grid, seed, leading=(2, 2))
    vectors = (image.features if config.metric == "features" else image.keys).double()
    for scaled in build(config).pyramid(image)[:-1]:
        for batch in range(2):
            for view in range(2):
                one = (image.features[batch, view], image.attention[batch, view], vectors[batch, view])
                into, features = transcribed(*(t.tolist() for t in one), scaled.features.shape[-2], config, grid)
                assert scaled.assignment[batch, view].tolist() == into
                assert torch.allclose(scaled.features[batch, view], torch.tensor(features), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 1000), config=st.sampled_from(CONFIGS))
def test_laws(make_image, blank, check_laws, grid, seed, config):
    image = make_image(grid, seed, leading=(2, 2))
    check_laws(build(config), image)
    check_laws(build(config), blank(image))


@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 1000), append=st.booleans())
def test_permutation(make_image, check_permutation, grid, seed, append):
    check_permutation(PruMergeScaler(PruMergeScaler.Config(append=append)), make_image(grid, seed), seed)


@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 1000), factor=st.sampled_from([1e-3, 0.5, 100.0]))
def test_tokens_stay_on_the_scale_of_tokens(make_image, grid, seed, factor):
    image = make_image(grid, seed)
    scaler = PruMergeScaler(PruMergeScaler.Config())
    longest = image.features.norm(dim=-1).amax(-1)
    for level in range(4):
        scaled = scaler.scale(image, level)
        lengths = scaled.features.norm(dim=-1)
        assert bool((lengths <= 2 * longest[:, None] + 1e-5).all())
        if scaled.features.shape[-2] < grid.tokens:
            assert bool((lengths[:, -1] <= longest + 1e-5).all())
        louder = scaler.scale(replace(image, attention=factor * image.attention), level)
        assert torch.allclose(louder.features, scaled.features, atol=1e-5)


def test_plus_keeps_the_sample_whatever_the_attention(make_image):
    # 16 of 64, one of them appended, 8 of them spread: 7 more by attention.
    image = make_image(Grid(8, 8), leading=(1,))
    sample = spread(Grid(8, 8), 8)
    scores = image.attention[0].clone()
    scores[sample] = 0.0
    scaled = PruMergePlusScaler(PruMergePlusScaler.Config()).scale(replace(image, attention=scores[None]), 2)
    kept = sorted([*sample, *scores.argsort(descending=True)[:7].tolist()])
    assert (scaled.assignment[0] < 15).nonzero().flatten().tolist() == kept


def test_plus_is_prumerge_with_another_default(make_image):
    image = make_image(Grid(5, 6))
    plus = PruMergePlusScaler(PruMergePlusScaler.Config()).pyramid(image)
    plain = PruMergeScaler(PruMergeScaler.Config(spatial=0.5)).pyramid(image)
    assert all(torch.equal(a.features, b.features) for a, b in zip(plus, plain, strict=True))


def test_decisions_stay_on_the_device(make_image, check_shapes_alone):
    for config in CONFIGS:
        check_shapes_alone(build(config), make_image(Grid(5, 7), leading=(2, 2)))


@pytest.mark.parametrize("case", [case for config in CONFIGS for case in cases(config)], ids=str)
def test_conformance(case):
    case()


def test_conformance_is_complete():
    check_component(PruMergeScaler.Config()).raise_if_bad()
    check_component(PruMergePlusScaler.Config()).raise_if_bad()


@pytest.mark.parametrize("owner", [PruMergeScaler, PruMergePlusScaler])
def test_refusals(make_image, owner):
    with pytest.raises(ConfigError, match=r"spatial=-0.1 is no share; use a number from 0 to 1"):
        owner(owner.Config(spatial=-0.1))
    with pytest.raises(ConfigError, match=r"neighbours=0 is no count; use an integer of 1 or more"):
        owner(owner.Config(neighbours=0))
    with pytest.raises(ConfigError, match="metric='values' is none of"):
        owner(owner.Config(metric="values"))
    with pytest.raises(ConfigError, match="weights='sums' is none of 'shares', 'attention'; use one"):
        owner(owner.Config(weights="sums"))
    with pytest.raises(ConfigError, match="from coarse to fine"):
        owner(owner.Config(ratios=(0.5, 0.25, 1.0)))
    with pytest.raises(InputError, match="PruMerge reads the vision tower's attention, and this image has none"):
        owner(owner.Config()).scale(replace(make_image(Grid(2, 2)), attention=None), 0)
    with pytest.raises(InputError, match="compares attention keys"):
        owner(owner.Config(metric="keys")).scale(replace(make_image(Grid(2, 2)), keys=None), 0)
