import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflex.contracts import Grid, Instruction, VisualTokens
from tokenflex.errors import ConfigError, InputError
from tokenflex.ops.keeping import kept_count
from tokenflex.testing import cases
from tokenflex_selection import MMTokScaler

Config = MMTokScaler.Config


@pytest.mark.parametrize("case", [*cases(Config()), *cases(Config(coverage=0.0))], ids=str)
def test_conformance(case):
    case()


def test_by_hand(tiny, kept):
    # Tokens at 0, 0, 90 and 180 degrees; the word at 180. Covered tokens: each of the first two covers both, 2; the
    # others cover themselves, 1. The word is covered by the last token only, 1. First come 2, 2, 1, 2: token 0.
    # What is added then: 0 by token 1, 1 by token 2, 1 + 1 by token 3.
    image = tiny([[1, 0], [2, 0], [0, 1], [-1, 0]], words=[[-3, 0]])
    levels = Config(ratios=(0.25, 0.5, 0.75, 1.0)).build().pyramid(image)
    assert [kept(level)[0] for level in levels[:3]] == [[0], [0, 3], [0, 2, 3]]
    # With a smaller weight of the tokens, 0.5 * 2 against 1 + 0.5, the word's token comes first.
    assert kept(Config(ratios=(0.25, 1.0), coverage=0.5).build().scale(image, 0)) == [[3]]


@given(
    grid=st.builds(Grid, st.integers(1, 5), st.integers(1, 6)),
    seed=st.integers(0, 99),
    coverage=st.sampled_from([0.3, 1.0]),
)
def test_laws(laws, grid, seed, coverage):
    laws(Config(coverage=coverage), grid, seed, permutable=False)


@given(grid=st.builds(Grid, st.integers(1, 5), st.integers(1, 6)), seed=st.integers(0, 99))
def test_order_is_nothing(image, laws, grid, seed):
    # Two tokens that resemble each other cover each other equally well; a word near each token breaks these ties.
    one_image = image(grid, seed, views=1)
    near = one_image.features[:, 0] + image(grid, seed + 100, views=1).features[:, 0] / 3
    words = Instruction(near, torch.ones(near.shape[:-1], dtype=torch.bool))
    laws.permute(Config(), replace(one_image, instruction=words), seed)


def test_stays_on_the_device(laws):
    laws.stay_on_device(Config())


def test_equal_tokens_go_by_index(palette, kept):
    image, first = palette
    five, eight, _ = Config(ratios=(5 / 24, 8 / 24, 1.0)).build().pyramid(image)
    assert kept(five) == [first]
    assert kept(eight) == [sorted([*first, 1, 3, 5])]


def test_without_words_tokens_are_covered(tiny, kept):
    image = tiny([[1, 0], [2, 0], [0, 1], [-1, 0]], words=[])
    assert kept(Config(ratios=(0.5, 1.0)).build().scale(image, 0)) == [[0, 2]]


@given(seed=st.integers(0, 99), dim=st.sampled_from([8, 33, 100]))
@settings(max_examples=60)
def test_equal_tokens_go_by_index_on_any_palette(kept, seed, dim):
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(6, dim, generator=generator)
    which = torch.cat([torch.randint(0, 6, (45,), generator=generator), torch.arange(6), torch.arange(6)])
    words = Instruction(torch.randn(3, dim, generator=generator), torch.ones(3, dtype=torch.bool))
    image = VisualTokens(colours[which][None], Grid(3, 19), instruction=words)
    first = sorted(which.tolist().index(colour) for colour in range(6))
    assert kept(Config(ratios=(6 / 57, 1.0)).build().scale(image, 0)) == [first]


def test_masked_words_are_inert(image):
    one_image, scaler = image(Grid(4, 5)), Config().build()
    words = one_image.instruction
    for value in (9.0, float("nan")):
        poisoned = Instruction(words.embeddings.masked_fill(~words.mask[..., None], value), words.mask)
        for level in range(4):
            found = scaler.scale(replace(one_image, instruction=poisoned), level)
            assert torch.equal(found.assignment, scaler.scale(one_image, level).assignment)


def tables(rows, words):
    def cosine(a, b):
        return max(sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b)), 0.0)

    return [[cosine(word, row) for row in rows] for word in words], [[cosine(a, b) for b in rows] for a in rows]


def worth(kept, to_words, to_tokens, coverage):
    """The objective itself."""
    if not kept:
        return 0.0
    return sum(max(s[i] for i in kept) for s in to_words) + coverage * sum(max(s[i] for i in kept) for s in to_tokens)


@pytest.mark.parametrize("coverage", [0.2, 1.0])
@pytest.mark.parametrize("grid", [Grid(4, 5), Grid(1, 9)])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_a_loop(image, kept, grid, seed, coverage):
    one_image, scaler = image(grid, seed), Config(coverage=coverage).build()
    words = [given[:-1] for given in one_image.instruction.embeddings.tolist()]
    levels = [kept(level) for level in scaler.pyramid(one_image)]
    for view, rows in enumerate(one_image.features.flatten(0, 1).tolist()):
        both = tables(rows, words[view // 2])
        picked = []
        for count in range(1, grid.tokens):
            left = [i for i in range(grid.tokens) if i not in picked]
            picked.append(max(left, key=lambda i: worth([*picked, i], *both, coverage)))
            for ratio, level in zip(scaler.ratios, levels, strict=True):
                if kept_count(ratio, grid.tokens) == count:
                    assert level[view] == sorted(picked)


def test_greedy_is_near_the_best(image, kept):
    grid = Grid(2, 4)
    one_image = image(grid, 3)
    found = kept(Config(ratios=(3 / 8, 1.0)).build().scale(one_image, 0))
    for view, rows in enumerate(one_image.features.flatten(0, 1).tolist()):
        both = tables(rows, one_image.instruction.embeddings[view // 2, :-1].tolist())
        best = max(worth(chosen, *both, 1.0) for chosen in combinations(range(8), 3))
        assert worth(found[view], *both, 1.0) >= (1 - 1 / math.e) * best


def test_refusals(tiny):
    with pytest.raises(ConfigError, match=r"coverage=-1\.0 must be a finite number"):
        Config(coverage=-1.0).build()
    with pytest.raises(InputError, match=r"VisualTokens\.instruction"):
        Config().build().scale(tiny([[1, 0]] * 4), 0)
