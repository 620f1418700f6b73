"""Images whose features or scores aren't finite: named, or given the finest level allowed, and never in others' way."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenflex
from tokenflex import Budget
from tokenflex.compressor import build, is_judged
from tokenflex.contracts import ComponentConfig, Grid, Instruction, Router, VisualTokens
from tokenflex.errors import ConfigError, InputError
from tokenflex.ops.ballots import one_per_view
from tokenflex.policies.constant import ConstantPolicy

DIM, GRID = 16, Grid(8, 8)
ROUTERS = ("attention-mass", "avg", "constant", "random", "reconstruction")
VOTERS = ("attention", "majority", "max-detail", "mean", "position-weighted", "quantile")
BAD = [torch.nan, torch.inf, -torch.inf]
ONE_BAD, ONE_LEFT = "w1 <image> w2 <image> w3 <image> w4", [0, 2]


class Doubtful(Router):
    """Votes as the features say, and NaN where they are all negative."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """No settings."""

    def __init__(self, config):
        super().__init__(config)

    def segments(self, grids):
        return (Grid(1, 1),)

    def forward(self, pyramid, instruction):
        means = pyramid[-1].features.mean((-2, -1))
        votes = torch.linspace(0, 1, len(pyramid)) * means[..., None]
        return one_per_view(votes.masked_fill(means[..., None] < 0, torch.nan))


def parts(router="avg", voter="mean", policy=None):
    torch.manual_seed(0)
    named = [tokenflex.scalers.get("average-pool").Config()]
    named += [one if isinstance(one, ComponentConfig) else tokenflex.routers.get(one).Config() for one in [router]]
    named += [tokenflex.voters.get(voter).Config(), policy or tokenflex.policies.get("argmax").Config()]
    return build(*named, dim=DIM, grid=GRID).eval()


def odd_images(count=3):
    torch.manual_seed(1)
    images = [
        VisualTokens(torch.randn(2, GRID.tokens, DIM), GRID, row=i, attention=torch.rand(2, GRID.tokens))
        for i in range(count)
    ]
    return images, [Instruction(torch.randn(3, DIM), torch.ones(3, dtype=torch.bool))] * count


def spoilt(image, value, field="features"):
    tensor = getattr(image, field).clone()
    tensor.view(-1)[5] = value
    return replace(image, **{field: tensor})


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("voter", VOTERS)
@torch.no_grad()
def test_no_router_and_voter_judge_what_is_not_finite(router, voter):
    compressor, (images, words) = parts(router, voter), odd_images()
    plain = compressor.scores(images, words)
    assert is_judged(plain).all()
    for value in BAD:
        scores = compressor.scores([images[0], spoilt(images[1], value), images[2]], words)
        assert scores[1].isnan().all()
        assert torch.equal(scores[ONE_LEFT], plain[ONE_LEFT])
    if "attention" in compressor.needs:
        assert compressor.scores([spoilt(images[0], torch.nan, "attention")], words[:1]).isnan().all()


def test_what_is_not_finite_spoils_no_gradient():
    compressor, (images, words) = parts(), odd_images()
    scores = compressor.scores([images[0], spoilt(images[1], torch.nan)], words[:2])
    scores[0].sum().backward()
    assert all(p.grad.isfinite().all() for p in compressor.router.parameters() if p.grad is not None)


@pytest.mark.parametrize("voter", VOTERS)
@torch.no_grad()
def test_ballots_that_are_nan_are_not_voted_away(voter):
    compressor, (images, words) = (
        parts(Doubtful.Config(), "mean" if voter == "position-weighted" else voter),
        odd_images(2),
    )
    images = [
        replace(images[0], features=images[0].features.abs()),
        replace(images[1], features=-images[1].features.abs()),
    ]
    scores = compressor.scores(images, words)
    assert is_judged(scores).tolist() == [True, False]
    with pytest.raises(InputError, match=r"no level can be chosen for image 1 \(row 1 of the batch\)"):
        compressor.choose(scores, torch.ones(2, 5).long().cumsum(-1), images)


NEVER, MOST = -torch.inf, torch.inf


@pytest.mark.parametrize(
    ("row", "fine"),
    [
        ([0.0, 1.0, 2.0], True),
        ([NEVER, 1.0, NEVER], True),
        ([0.0, torch.nan, 2.0], False),
        ([NEVER, torch.nan, 2.0], False),
        ([0.0, MOST, 1.0], False),
        ([NEVER, NEVER, NEVER], False),
    ],
)
@pytest.mark.parametrize("policy", ["argmax", "budget", "constant"])
def test_what_scores_may_say(row, fine, policy):
    compressor = parts(policy=tokenflex.policies.get(policy).Config())
    images, _ = odd_images(2)
    scores, tokens = torch.tensor([[0.0, 1.0, 0.5], row]), torch.tensor([[1, 2, 4]] * 2)
    if fine:
        levels = compressor.choose(scores, tokens, images)
        assert levels == ([2, 2] if policy == "constant" else [1, int(torch.tensor(row).argmax())])
        compressor.require_judged(scores, images)
        return
    for call in (lambda: compressor.choose(scores, tokens, images), lambda: compressor.require_judged(scores, images)):
        with pytest.raises(InputError, match=r"image 1 \(row 1 of the batch\).*on_bad_scores = 'finest'"):
            call()


def test_all_of_them_are_named():
    compressor, (images, _) = parts(), odd_images(4)
    scores = torch.tensor([[0.0, 1.0], [torch.nan, 0.0], [1.0, 0.0], [torch.nan, torch.nan]])
    with pytest.raises(InputError, match=r"image 1 \(row 1 of the batch\), image 3 \(row 3 of the batch\): "):
        compressor.choose(scores, torch.tensor([[1, 2]] * 4), images)


def test_the_other_way_is_the_finest_level_allowed():
    compressor, (images, _) = parts(), odd_images(2)
    compressor.on_bad_scores = "finest"
    scores, tokens = torch.tensor([[0.5, 0.4, 0.3], [torch.nan] * 3]), torch.tensor([[10, 50, 100]] * 2)

    def chosen(config=None):
        return compressor.choose(scores, tokens, images, config and config.build(num_levels=3))

    assert chosen() == [0, 2]
    assert chosen(Budget(tokens=60)) == [0, 1]
    assert chosen(Budget(ceiling=1)) == [0, 1]
    assert chosen(Budget(weight=1e9)) == [0, 2]
    assert chosen(ConstantPolicy.Config(level=1)) == [1, 1]
    assert scores[1].isnan().all(), "scores are reported as they were"
    with pytest.raises(ConfigError, match="on_bad_scores='coarsest'; use one of 'raise', 'finest'"):
        compressor.on_bad_scores = "coarsest"


FINEST, IMAGES = parts(), odd_images(4)[0]
FINEST.on_bad_scores = "finest"
TABLE = st.integers(2, 4).flatmap(
    lambda count: st.tuples(
        st.lists(st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3), min_size=count, max_size=count),
        st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=3).map(sorted), min_size=count, max_size=count),
        st.integers(0, count - 1),
        st.integers(1, 40),
    )
)


@given(TABLE)
def test_a_request_keeps_its_budget_whatever_cannot_be_judged(case):
    rows, costs, bad, cap = case
    compressor, images = FINEST, IMAGES[: len(rows)]
    images = [replace(image, row=0) for image in images]
    scores, tokens = torch.tensor(rows), torch.tensor(costs)
    scores[bad] = torch.nan
    levels = compressor.choose(scores, tokens, images, Budget(tokens=cap, per="request").build())
    spent = [int(row[level]) for row, level in zip(tokens, levels, strict=True)]
    cheapest = int(tokens[:, 0].sum())
    assert sum(spent) <= max(cap, cheapest)
    others = [i for i in range(len(rows)) if i != bad]
    least = cheapest - int(tokens[bad, 0])
    if least + int(tokens[bad, 2]) <= cap:
        assert spent[bad] == int(tokens[bad, 2]), "it has the finest level where others can make room"
    else:
        assert [spent[i] for i in others] == [int(tokens[i, 0]) for i in others], "others make all the room there is"


@pytest.fixture
def bad(batch):
    """A request with three images, of which the second is NaN."""
    inputs = batch(ONE_BAD)
    pixels = inputs["pixel_values"].clone()
    pixels[1] = torch.nan
    return inputs | {"pixel_values": pixels}


@pytest.mark.parametrize("router", ["avg", "reconstruction", "constant"])
def test_on_a_host(host, batch, bad, router):
    torch.manual_seed(0)
    flex = tokenflex.wrap(host, router=router, voter="majority")
    free = flex.decide(**batch(ONE_BAD))
    for call in (flex, flex.decide, flex.generate):
        with pytest.raises(InputError, match=r"image 1 \(row 0 of the batch\): features or scores are NaN"):
            call(**bad)
    assert [one.level for one in flex.decide(**bad, level=2)] == [2, 2, 2], "a forced level asks no router"
    with torch.no_grad():
        assert flex(**bad, level=-1).logits.isnan().any(), "what NaN makes of the answer is the host's business"
    flex.compressor.on_bad_scores = "finest"
    found = flex.decide(**bad)
    assert found[1].level == 4
    assert found[1].scores.isnan().all()
    for i in ONE_LEFT:
        assert found[i].level == free[i].level
        assert torch.equal(found[i].scores, free[i].scores)


def test_a_request_with_a_nan_image_keeps_to_its_budget(host, batch, bad):
    flex = tokenflex.wrap(host, router="reconstruction", voter="mean")
    flex.compressor.on_bad_scores = "finest"
    for ratio in (0.05, 0.1, 0.3, 0.6, 1.0):
        found = flex.decide(**bad, budget=Budget(ratio=ratio, per="request"))
        allowed = ratio * sum(one.of for one in found)
        least = sum(one.tokens for one in flex.decide(**bad, level=0))
        assert sum(one.tokens for one in found) <= max(allowed, least)
    assert [one.level for one in found] == [4, 4, 4]


def test_calibrate_names_the_image(host, bad):
    flex = tokenflex.wrap(host, router="reconstruction", voter="mean")
    with pytest.raises(InputError, match="image 1"):
        tokenflex.calibrate(flex, Budget(ratio=0.5), [bad])


def test_the_choice_is_not_saved(host, tmp_path):
    flex = tokenflex.wrap(host, router="constant", voter="mean")
    flex.compressor.on_bad_scores = "finest"
    flex.save_parts(tmp_path)
    assert tokenflex.load_parts(tmp_path, host=host).compressor.on_bad_scores == "raise"
