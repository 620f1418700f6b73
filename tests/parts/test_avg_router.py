"""The published router in its cheap form against its plain form, ``nn.TransformerEncoderLayer`` on every row."""

from dataclasses import replace

import pytest
import torch
from einops import rearrange
from torch.utils.flop_counter import FlopCounterMode

import tokenflex
from tokenflex.contracts import Grid, Instruction, ScaledTokens, VisualTokens
from tokenflex.errors import ConfigError, InputError
from tokenflex.ops.relevance import most_relevant, relevance
from tokenflex.routers.avg import AVGRouter

DIM = 32
GRIDS = [Grid(8, 8), Grid(7, 5)]


def made(attend="tiles", text_tokens=4, dim=DIM, dropout=0.0, rows="all"):
    torch.manual_seed(0)
    config = AVGRouter.Config(attend=attend, text_tokens=text_tokens, dropout=dropout, rows=rows)
    return config.build(dim=dim, num_levels=5).eval()


def request(leading=(), views=3, grid=GRIDS[0], words=6, dim=DIM, scaler="average-pool"):
    """(pyramid, instruction) with a masked word where there are more than two."""
    generator = torch.Generator().manual_seed(1)
    part = tokenflex.scalers.get(scaler).Config().build(dim=dim, grid=grid)
    tokens = VisualTokens(torch.randn(*leading, views, grid.tokens, dim, generator=generator), grid)
    embeddings = torch.randn(*leading, words, dim, generator=generator)
    mask = torch.arange(words).expand(*leading, words) != 2
    return [part.scale(tokens, level) for level in range(5)], Instruction(embeddings, mask)


def plain(router, pyramid, instruction):
    """Every row of every view through the layer, the words' rows repeated for each view."""
    finest = pyramid[-1].features
    scores = relevance(finest[..., 0, :, :], instruction.embeddings)
    words = most_relevant(instruction.embeddings, scores, instruction.mask, router.text_tokens)
    text = words[..., None, :, :].expand(*finest.shape[:-2], *words.shape[-2:])
    rows = torch.cat([*(level.features for level in pyramid[router.voting]), text], dim=-2)
    items = rows.view(-1, *rows.shape[-3:])
    if router.attend == "tiles":
        merged = router.merger(rearrange(items, "b v r d -> v (b r) d"))
        merged = rearrange(merged, "v (b r) d -> b v r d", b=len(items))
    else:
        merged = router.merger(rearrange(items, "b v r d -> r (b v) d"))
        merged = rearrange(merged, "r (b v) d -> b v r d", b=len(items))
    return router.mlp(merged).view(*rows.shape[:-1], -1)


def near(found, expected, name="logits"):
    """Equal to 1e-5 of the largest entry."""
    assert found.shape == expected.shape
    off = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    assert off <= 1e-5, f"{name} are off by {off:.2g}"


@pytest.mark.parametrize("attend", ["tiles", "tokens"])
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("grid", GRIDS)
def test_without_the_finest_rows_the_others_vote_as_they_would_alone(attend, views, grid):
    """Rows attend to one another across tiles only, so there leaving rows out changes no other row."""
    pyramid, instruction = request((2,), views, grid)
    torch.manual_seed(0)
    router = (
        AVGRouter.Config(attend=attend, text_tokens=4, dropout=0.0, rows="pooled").build(dim=DIM, num_levels=5).eval()
    )
    found = router(pyramid, instruction)
    assert found.segments == (*(level.grid for level in pyramid[:-1]), Grid(1, 4))
    assert found.logits.shape[-2] == sum(segment.tokens for segment in found.segments)
    near(found.logits, plain(router, pyramid, instruction))
    if attend == "tiles":
        everyone = made(attend)(pyramid, instruction).logits
        pooled = found.logits.shape[-2] - 4
        near(found.logits[..., :pooled, :], everyone[..., :pooled, :])


def test_pooled_rows_halve_the_work():
    pyramid, instruction = request(views=3, grid=Grid(24, 24), dim=64)
    flops = {}
    for rows in ("all", "pooled"):
        router = AVGRouter.Config(text_tokens=4, rows=rows).build(dim=64, num_levels=5).eval()
        with FlopCounterMode(display=False) as counter:
            router(pyramid, instruction)
        flops[rows] = counter.get_total_flops()
    assert flops["pooled"] < 0.52 * flops["all"]


def test_pooled_rows_need_a_coarser_level():
    with pytest.raises(ConfigError, match="leaves the finest level out"):
        AVGRouter.Config(rows="pooled").build(dim=32, num_levels=1)
    with pytest.raises(ConfigError, match="rows='some'; use 'all'"):
        AVGRouter.Config(rows="some").build(dim=32, num_levels=5)


@pytest.mark.parametrize("attend", ["tiles", "tokens"])
@pytest.mark.parametrize("spill", [False, True])
def test_a_router_that_sees_less_is_told_nothing_by_the_rest(attend, spill):
    """One that sees the question votes alike for all images, and one that sees the image for all questions."""
    (pyramid, instruction), (other, _) = request(words=6), request(words=6, scaler="stride")
    further = Instruction(instruction.embeddings.flip(-1), instruction.mask)

    def votes(sees, *shown):
        torch.manual_seed(0)
        config = AVGRouter.Config(attend=attend, text_tokens=4, dropout=0.0, spill=spill, sees=sees)
        return config.build(dim=DIM, num_levels=5).eval()(*shown).logits

    for sees, image_tells, question_tells in (("both", True, True), ("question", False, True), ("image", True, False)):
        found = votes(sees, pyramid, instruction)
        assert found.isfinite().all()
        assert bool((votes(sees, other, instruction) != found).any()) == image_tells
        assert bool((votes(sees, pyramid, further) != found).any()) == question_tells


def test_what_a_router_sees_is_one_of_three():
    with pytest.raises(ConfigError, match="sees"):
        AVGRouter.Config(sees="nothing")


def gradients(router, logits):
    """Of a random functional of the logits, by parameter."""
    coefficients = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    router.zero_grad()
    (logits * coefficients).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in router.named_parameters()}


@pytest.mark.parametrize("attend", ["tiles", "tokens"])
@pytest.mark.parametrize("views", [1, 3, 5])
@pytest.mark.parametrize("leading", [(), (2,), (2, 2)])
@pytest.mark.parametrize("grid", GRIDS)
def test_logits_and_gradients_are_the_plain_forms(attend, views, leading, grid):
    router, asked = made(attend), request(leading, views, grid)
    found, expected = router(*asked).logits, plain(router, *asked)
    near(found, expected)
    ours, theirs = gradients(router, found), gradients(router, expected)
    for name, gradient in theirs.items():
        near(ours[name], gradient, f"gradients of {name}")


@pytest.mark.parametrize("attend", ["tiles", "tokens"])
@pytest.mark.parametrize(("words", "text_tokens"), [(0, 4), (1, 4), (6, 0), (0, 0)])
@pytest.mark.parametrize("views", [1, 3])
def test_few_words_or_none(attend, words, text_tokens, views):
    router, asked = made(attend, text_tokens), request((2,), views, words=words)
    near(router(*asked).logits, plain(router, *asked))


@pytest.mark.parametrize("attend", ["tiles", "tokens"])
@pytest.mark.parametrize("scaler", ["stride", "random", "resize"])
@pytest.mark.parametrize("views", [1, 3])
def test_whatever_the_scaler(attend, scaler, views):
    router, asked = made(attend), request((2,), views, GRIDS[1], scaler=scaler)
    near(router(*asked).logits, plain(router, *asked))


@pytest.mark.parametrize("attend", ["tiles", "tokens"])
@pytest.mark.parametrize("views", [1, 3])
def test_pyramids_that_claim_no_averages_give_the_same(attend, views):
    router, (pyramid, words) = made(attend), request((2,), views)
    unclaimed = [replace(level, averages=False) for level in pyramid]
    near(router(unclaimed, words).logits, router(pyramid, words).logits)


@pytest.mark.parametrize("attend", ["tiles", "tokens"])
def test_gradients_reach_the_features(attend):
    router, grid = made(attend), GRIDS[1]
    features = torch.randn(3, grid.tokens, DIM, requires_grad=True)
    scaler = tokenflex.scalers.get("average-pool").Config().build(dim=DIM, grid=grid)
    pyramid = [scaler.scale(VisualTokens(features, grid), level) for level in range(5)]
    words = request()[1]
    found = [torch.autograd.grad(form(router, pyramid, words).square().sum(), features, retain_graph=True)[0]
             for form in (lambda *asked: router(*asked[1:]).logits, plain)]  # fmt: skip
    near(*found, "gradients of features")


@pytest.mark.parametrize("attend", ["tiles", "tokens"])
@pytest.mark.parametrize("views", [1, 2])
def test_dropout_of_attention_has_the_plain_forms_mean_and_spread(attend, views):
    """Over many draws while training, for the one row of the coarsest level."""
    router = made(attend, dropout=0.3, text_tokens=0).train()
    for module in router.merger.children():
        module.train(module is router.merger.self_attn)
    asked = request((), views, Grid(4, 4), words=0)
    many = [replace(level, features=level.features.expand(2000, -1, -1, -1),
                    assignment=level.assignment.expand(2000, -1, -1)) for level in asked[0]]  # fmt: skip
    words = Instruction(torch.zeros(2000, 0, DIM), torch.ones(2000, 0, dtype=torch.bool))
    with torch.no_grad():
        ours, theirs = router(many, words).logits[:, 0, 0], plain(router, many, words)[:, 0, 0]
    spread = theirs.std(0)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 0.1 * spread).all()
    torch.testing.assert_close(ours.std(0), spread, atol=0, rtol=0.1)


@pytest.mark.parametrize(("views", "most"), [(5, 0.78), (1, 0.60)])
def test_operations_against_the_plain_form(views, most):
    router, asked = made(text_tokens=32, dim=256, dropout=0.1), request((), views, Grid(24, 24), words=64, dim=256)
    counts = []
    for form in (router, lambda *asked: plain(router, *asked)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            form(*asked)
        counts.append(counter.get_total_flops())
    assert counts[0] <= most * counts[1], f"{counts[0] / counts[1]:.3f} of the operations"


def test_attention_over_tokens_projects_the_finest_level_only():
    router, (pyramid, words) = made("tokens", 32, 256), request((), 1, Grid(24, 24), words=64, dim=256)
    counts = []
    for levels in (pyramid, [replace(level, averages=False) for level in pyramid]):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            router(levels, words)
        counts.append(counter.get_total_flops())
    coarse = 36 + 72 + 144 + 288
    assert counts[1] - counts[0] == 2 * coarse * 3 * 256 * 256


def test_levels_with_different_numbers_of_frames_are_refused():
    config = AVGRouter.Config(text_tokens=0)
    router = config.build(dim=8, num_levels=2)
    levels = [
        ScaledTokens(torch.zeros(frames, 4, 8), torch.zeros(4, 4, dtype=torch.long), Grid(2, 2)) for frames in (2, 4)
    ]
    with pytest.raises(InputError, match="the levels have 2, 4 views"):
        router(levels, Instruction(torch.zeros(0, 8), torch.zeros(0, dtype=torch.bool)))
