"""The gate: one vote per view, from its tokens alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex import routers
from tokenflex.contracts import Grid, Instruction, ScaledTokens, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.testing import cases
from tokenflex_vir import TileGateRouter, TwoRatesScaler

Config = TileGateRouter.Config
GRIDS = st.builds(Grid, st.integers(1, 6), st.integers(1, 6))
NO_WORDS = Instruction(torch.zeros(0, 6), torch.zeros(0, dtype=torch.bool))


@pytest.mark.parametrize(
    "case", [*cases(Config()), *cases(Config(hidden=3), levels=2), *cases(Config(), levels=1)], ids=str
)
def test_conformance(case):
    case()


def test_registered():
    assert routers.provider("tile-gate").distribution == "tokenflex-vir"
    assert routers.get("tile-gate").__name__ == "TileGateRouter"


def gate(seed=0, **settings):
    torch.manual_seed(seed)
    router = Config(**settings).build(dim=6, num_levels=2)
    torch.nn.init.normal_(router.mlp[-1].weight)
    return router.eval()


def pyramid(tokens):
    return TwoRatesScaler.Config(merge="mean").build(dim=6).pyramid(tokens)


def test_worked_example():
    # Tokens (2, 0), (0, 4) and (4, 0): layer-normed (1, -1), (-1, 1) and (1, -1), mean (1/3, -1/3). The hidden unit
    # takes the first entry, gelu(1/3); the outputs take it once negated and once as it is.
    router = Config(hidden=1).build(dim=2, num_levels=2)
    with torch.no_grad():
        router.mlp[0].weight.copy_(torch.tensor([[1.0, 0.0]]))
        router.mlp[0].bias.zero_()
        router.mlp[2].weight.copy_(torch.tensor([[-1.0], [1.0]]))
    features = torch.tensor([[[2.0, 0.0], [0.0, 4.0], [4.0, 0.0]]])
    level = ScaledTokens(features, torch.arange(3)[None], Grid(1, 3), averages=True)
    ballots = router([level], Instruction(torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool)))
    third = (1 / 3) * 0.5 * (1 + math.erf(1 / 3 / math.sqrt(2)))
    torch.testing.assert_close(ballots.logits, torch.tensor([[[-third, third]]]), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("grid", [Grid(4, 4), Grid(3, 5), Grid(1, 1)])
def test_equals_the_formula(image, grid, seed):
    router = gate(seed)
    tokens = image(grid, 3, seed=seed)
    logits = router(pyramid(tokens), NO_WORDS).logits
    for view in range(3):
        mean = torch.zeros(6)
        for token in tokens.features[view]:
            spread = ((token - token.mean()) ** 2).mean()
            mean += (token - token.mean()) / torch.sqrt(spread + 1e-5) / grid.tokens
        hidden = router.mlp[0].weight @ mean + router.mlp[0].bias
        hidden = torch.stack([x * 0.5 * (1 + math.erf(float(x) / math.sqrt(2))) for x in hidden])
        expected = router.mlp[2].weight @ hidden + router.mlp[2].bias
        torch.testing.assert_close(logits[view, 0], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@given(grid=GRIDS, seed=st.integers(0, 9))
def test_laws(image, grid, seed):
    """Views vote apart, the order of tokens doesn't matter, and neither does the instruction."""
    router = gate()
    tokens = image(grid, 2, 3, seed=seed)
    logits = router(pyramid(tokens), NO_WORDS).logits
    assert logits.shape == (2, 3, 1, 2)
    words = Instruction(torch.randn(2, 4, 6), torch.ones(2, 4, dtype=torch.bool))
    assert torch.equal(router(pyramid(tokens), words).logits, logits)
    shuffled = VisualTokens(tokens.features.flip(-2), grid)
    torch.testing.assert_close(router(pyramid(shuffled), NO_WORDS).logits, logits)
    for i in range(2):
        for view in range(3):
            alone = VisualTokens(tokens.features[i, view : view + 1], grid)
            torch.testing.assert_close(router(pyramid(alone), NO_WORDS).logits[0], logits[i, view])


def test_a_fresh_gate_is_undecided(image):
    router = Config().build(dim=6, num_levels=2)
    assert router(pyramid(image(Grid(4, 4))), NO_WORDS).logits.tolist() == [[[0.0, 0.0]]]


def test_bad_settings():
    with pytest.raises(ConfigError, match="hidden=0 is no width"):
        Config(hidden=0).build(dim=6, num_levels=2)
