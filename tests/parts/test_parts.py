"""What is particular to each built-in part; what all share is in tests/testing."""

import pytest
import torch

import tokenflex
from tokenflex.contracts import Ballots, Grid, Instruction, VisualTokens
from tokenflex.errors import ConfigError, InputError, TokenFlexError
from tokenflex.ops.pooling import pool_windows
from tokenflex.policies.argmax import ArgmaxPolicy
from tokenflex.policies.constant import ConstantPolicy
from tokenflex.routers.avg import AVGRouter
from tokenflex.routers.constant import ConstantRouter
from tokenflex.routers.random import RandomRouter
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.testing.bench import Bench
from tokenflex.voters.mean import MeanVoter
from tokenflex.voters.position_weighted import PositionWeightedVoter

GRID = Grid(8, 8)


def image(grid=GRID, views=2, dim=32, seed=0):
    return VisualTokens(torch.randn(views, grid.tokens, dim, generator=torch.Generator().manual_seed(seed)), grid)


def scaler(name, **settings):
    config = tokenflex.scalers.get(name).Config(**settings)
    return config.build(dim=32, grid=GRID)


@pytest.mark.parametrize("name", ["average-pool", "stride", "random", "resize"])
def test_scalers_keep_the_same_counts(name):
    assert scaler(name).granularities(Grid(24, 24)) == (36, 72, 144, 288, 576)


def test_average_pool_averages():
    tokens = image()
    for level, window in enumerate(((4, 4), (2, 4), (2, 2), (1, 2), (1, 1))):
        expected = pool_windows(tokens.features, GRID, window)
        assert torch.equal(scaler("average-pool").scale(tokens, level).features, expected)


@pytest.mark.parametrize("name", ["stride", "random"])
def test_selecting_scalers_keep_tokens_as_they_are(name):
    tokens = image()
    scaled = scaler(name).scale(tokens, 1)
    for view in range(2):
        kept = (scaled.assignment[view] >= 0).nonzero().flatten()
        where = scaled.assignment[view][kept]
        assert torch.equal(scaled.features[view][where], tokens.features[view][kept])


def test_random_scaler_repeats_with_its_seed():
    tokens = image()
    one, same, other = (scaler("random", seed=seed).scale(tokens, 0).assignment for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def routed(router, tokens, words=3, seed=0):
    pyramid = [scaler("average-pool").scale(tokens, level) for level in range(5)]
    embeddings = torch.randn(words, 32, generator=torch.Generator().manual_seed(seed))
    return router(pyramid, Instruction(embeddings, torch.ones(words, dtype=torch.bool)))


@pytest.mark.parametrize("attend", ["tiles", "tokens"])
def test_avg_router_votes_with_every_token(attend):
    torch.manual_seed(0)
    router = AVGRouter.Config(attend=attend, text_tokens=3).build(dim=32, num_levels=5).eval()
    ballots = routed(router, image())
    assert sum(grid.tokens for grid in ballots.segments) == ballots.logits.shape[-2] == 4 + 8 + 16 + 32 + 64 + 3
    assert ballots.logits.shape[-1] == 5


def test_attention_across_tiles_is_the_published_default():
    """With `tiles` a token attends the same position in other views; with `tokens` only its own view."""
    torch.manual_seed(0)
    assert AVGRouter.Config().attend == "tiles"
    one, two = image(views=2), image(views=2)
    two.features[1] += 1.0
    for attend, alike in (("tiles", False), ("tokens", True)):
        router = AVGRouter.Config(attend=attend, text_tokens=0).build(dim=32, num_levels=5).eval()
        first, second = (routed(router, tokens, words=0).logits[0] for tokens in (one, two))
        assert torch.allclose(first, second, atol=1e-6) == alike


def test_avg_router_reads_the_instruction():
    torch.manual_seed(0)
    router = AVGRouter.Config(attend="tokens").build(dim=32, num_levels=5).eval()
    one, other = (routed(router, image(), seed=seed).logits for seed in (0, 1))
    assert not torch.allclose(one, other)


def test_constant_and_random_routers():
    bench = Bench(ConstantRouter.Config(level=2))
    ballots = bench.build()(bench.pyramid(bench.image()), bench.instruction())
    assert MeanVoter.Config().build()(ballots).argmax() == 2
    draws = []
    router = RandomRouter.Config(weights=(0.0, 1.0, 0.0, 3.0, 0.0)).build(num_levels=5)
    for seed in range(60):
        draws.append(int(routed(router, image(seed=seed)).logits[0, 0].argmax()))
    assert set(draws) == {1, 3}
    assert draws.count(3) > draws.count(1)
    assert draws[0] == int(routed(router, image(seed=0)).logits[0, 0].argmax())


def test_position_weighted_voter_is_the_published_formula():
    torch.manual_seed(0)
    segments = (Grid(2, 2), Grid(1, 3))
    voter = PositionWeightedVoter.Config().build(segments=segments, num_levels=4)
    logits = torch.randn(3, 7, 4)
    mask = torch.ones(3, 7, dtype=torch.bool)
    tally = (logits * voter.weight[None, :, None]).sum(1).mean(0)
    expected = (tally - tally.mean()) / (tally.var(unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(voter(Ballots(logits, mask, segments)), expected)
    with pytest.raises(InputError, match="1 segments of voters, this voter was made for 2"):
        voter(Ballots(logits, mask, (Grid(1, 7),)))


def test_resampled_weights_keep_a_levels_say():
    voter = PositionWeightedVoter.Config().build(segments=(Grid(4, 4),), num_levels=2)
    voter.weight.data.fill_(0.5)
    logits = torch.tensor([1.0, 3.0]).expand(1, 64, 2)
    whole = voter._weights((Grid(8, 8),))
    torch.testing.assert_close(whole.sum(), voter.weight.sum())
    assert voter(Ballots(logits, torch.ones(1, 64, dtype=torch.bool), (Grid(8, 8),))).argmax() == 1


def test_policies():
    scores = torch.tensor([[1.0, 5.0, 5.0], [2.0, 1.0, 0.0]])
    tokens = torch.tensor([[1, 2, 3]] * 2)
    assert ArgmaxPolicy.Config().build()(scores, tokens).tolist() == [1, 0]
    assert ConstantPolicy.Config(level=-1).build()(scores, tokens).tolist() == [2, 2]
    with pytest.raises(InputError, match=r"level=3; with 3 levels use 0..2 or -1"):
        ConstantPolicy.Config(level=3).build()(scores, tokens)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AveragePoolScaler.Config(windows=()).build(dim=4),
        lambda: AVGRouter.Config(attend="rows").build(dim=32, num_levels=5),
        lambda: AVGRouter.Config(text_tokens=-1).build(dim=32, num_levels=5),
        lambda: AVGRouter.Config().build(dim=33, num_levels=5),
        lambda: ConstantRouter.Config(level=9).build(num_levels=5),
        lambda: RandomRouter.Config(weights=(1.0,)).build(num_levels=5),
        lambda: RandomRouter.Config(weights=(0.0,) * 5).build(num_levels=5),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(TokenFlexError) as caught:
        make()
    assert isinstance(caught.value, ConfigError)
