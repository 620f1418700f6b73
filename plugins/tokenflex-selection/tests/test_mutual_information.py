import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Grid, Instruction
from tokenflex.errors import ConfigError
from tokenflex.testing import cases
from tokenflex_selection import MutualInformationRouter

Config = MutualInformationRouter.Config


@pytest.mark.parametrize("case", [*cases(Config()), *cases(Config(temperature=1.0), levels=2)], ids=str)
def test_conformance(case):
    case()


def instruction(rows, dim=2):
    embeddings = torch.tensor(rows, dtype=torch.float32).reshape(-1, dim)
    return Instruction(embeddings, torch.ones(len(embeddings), dtype=torch.bool))


def needed(ballots, kept=1):
    """What a level of ``kept`` tokens lacks, plus those tokens; where it lacks something."""
    return kept * (1 - ballots.logits[..., 0, 0])


def test_by_hand(levels_of):
    # Two words, two of four tokens at right angles to each other, two zero; temperature 1 / log 3.
    # exp(cosine / temperature) is 3 for the word's own token, 1 for the others: p(i | t) = 1/2, 1/6, 1/6, 1/6 for the
    # first word, 1/6, 1/2, 1/6, 1/6 for the second; p(i) = 1/3, 1/3, 1/6, 1/6.
    # Information = 1/2 log(3/2) + 1/6 log(1/2) = 0.2027 - 0.1155 = 0.0872; over log 2: 0.1258.
    features = torch.tensor([[[2.0, 0], [0, 5], [0, 0], [0, 0]]])
    config = Config(temperature=1 / math.log(3), steepness=10.0, midpoint=0.5)
    found = needed(config.build()(levels_of(features, [1]), instruction([[1, 0], [0, 1]])))
    information = (0.5 * math.log(1.5) + math.log(0.5) / 6) / math.log(2)
    assert information == pytest.approx(0.1258, abs=1e-4)
    assert found.item() == pytest.approx(4 / (1 + math.exp(10 * (information - 0.5))), rel=1e-4)
    # Words that agree say nothing about where to look: 4 / (1 + exp(-5)) tokens; so does one word, or none.
    for words in ([[1, 0], [2, 0]], [[1, 0]], []):
        found = needed(config.build()(levels_of(features, [1]), instruction(words)))
        assert found.item() == pytest.approx(4 / (1 + math.exp(-5)), rel=1e-5)


def test_pointed_words_need_few_tokens(levels_of):
    # Eight words, each with a token of its own: information is 1, and 16 / (1 + exp(5)) = 0.107 tokens are enough.
    features = torch.cat([torch.eye(8), torch.zeros(8, 8)])[None]
    pointed = Config(temperature=0.01).build()(levels_of(features, [1, 4]), instruction(torch.eye(8).tolist(), 8))
    assert pointed.logits[0, 0].tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    vague = Config(temperature=100.0).build()(levels_of(features, [1, 4]), instruction(torch.eye(8).tolist(), 8))
    assert vague.logits[0, 0].argmax() == 2
    assert vague.segments == (Grid(1, 1),)


@given(
    tokens=st.integers(1, 12),
    words=st.integers(0, 5),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0.01, 0.1, 10.0]),
)
def test_laws(levels_of, tokens, words, seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, tokens, 4, generator=generator)
    embeddings = torch.randn(2, words, 4, generator=generator)
    mask = torch.rand(2, words, generator=generator) < 0.7
    config = Config(temperature=temperature, steepness=1.0)
    router = config.build()

    def vote(values, given, counting):
        ballots = router(levels_of(values, [1]), Instruction(given, counting))
        assert bool(ballots.logits.isfinite().all())
        return ballots.logits

    found = vote(features, embeddings, mask)
    order = torch.randperm(tokens, generator=generator)
    mixed = torch.randperm(words, generator=generator)
    assert torch.allclose(vote(features[..., order, :], embeddings, mask), found, atol=1e-5)
    assert torch.allclose(vote(features, embeddings[:, mixed], mask[:, mixed]), found, atol=1e-5)
    padded = torch.cat([embeddings.masked_fill(~mask[..., None], math.nan), torch.full((2, 3, 4), math.inf)], 1)
    longer = torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], 1)
    assert torch.allclose(vote(features, padded, longer), found, atol=1e-6)
    for item in range(2):
        for view in range(3):
            alone = vote(features[item, view : view + 1], embeddings[item], mask[item])
            assert torch.allclose(alone[0], found[item, view], atol=1e-5)


def loop(rows, words, config):
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    joint = []
    for word in words:
        exps = [math.exp(cosine(word, row) / config.temperature) for row in rows]
        joint.append([e / sum(exps) / len(words) for e in exps])
    of_word = [sum(line) for line in joint]
    of_token = [sum(line[i] for line in joint) for i in range(len(rows))]
    information = 0.0
    for t, line in enumerate(joint):
        for i, p in enumerate(line):
            if p > 0:
                information += p * math.log(p / (of_word[t] * of_token[i]))
    share = information / math.log(min(len(words), len(rows)))
    return len(rows) / (1 + math.exp(config.steepness * (share - config.midpoint)))


@pytest.mark.parametrize("temperature", [0.05, 0.3])
@pytest.mark.parametrize(("tokens", "words"), [(20, 4), (3, 6)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_a_loop(levels_of, tokens, words, seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 2, tokens, 6, generator=generator)
    embeddings = torch.randn(2, words, 6, generator=generator)
    mask = torch.ones(2, words, dtype=torch.bool)
    mask[:, 0] = False
    config = Config(temperature=temperature, steepness=2.0)
    found = needed(config.build()(levels_of(features, [1]), Instruction(embeddings, mask)))
    for view, rows in enumerate(features.flatten(0, 1).tolist()):
        expected = loop(rows, embeddings[view // 2, 1:].tolist(), config)
        assert found.flatten()[view].item() == pytest.approx(max(expected, 1.0), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, r"temperature=0\.0 must be a finite number above 0"),
        ({"steepness": -1.0}, r"steepness=-1\.0 must be a finite number above 0"),
        ({"midpoint": math.nan}, "midpoint=nan of .* must be a finite number"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config(**settings).build()
