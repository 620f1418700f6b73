"""The text filter in its cheap form against the table of cosines."""

import itertools

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.ops.relevance import most_relevant, relevance

COUNTS = st.integers(1, 9)


@given(COUNTS, COUNTS, st.integers(0, 3))
def test_equals_the_mean_of_all_cosines(tokens, words, seed):
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(tokens, 5, generator=generator), torch.randn(words, 5, generator=generator)
    table = F.cosine_similarity(text[:, None], image[None], dim=-1)
    torch.testing.assert_close(relevance(image, text), table.mean(-1))


def test_zero_vectors_have_no_say():
    image = torch.stack([torch.zeros(3), torch.tensor([1.0, 0.0, 0.0])])
    assert relevance(image, torch.eye(3)).tolist() == [0.5, 0.0, 0.0]
    assert relevance(image, torch.zeros(2, 3)).tolist() == [0.0, 0.0]


@given(st.integers(0, 6), st.integers(0, 8), st.integers(0, 5))
def test_best_first_then_zero_rows(words, k, masked):
    generator = torch.Generator().manual_seed(words)
    text, scores = torch.randn(words, 4, generator=generator), torch.randn(words, generator=generator)
    mask = torch.arange(words) >= masked
    rows = most_relevant(text, scores, mask, k)
    assert rows.shape == (k, 4)
    allowed = [i for i in range(words) if mask[i]]
    expected = sorted(allowed, key=lambda i: -float(scores[i]))[:k]
    for row, word in zip(rows, expected, strict=False):
        assert torch.equal(row, text[word])
    assert not rows[len(expected) :].any()


def test_ties_keep_the_order_of_the_text():
    text = torch.eye(4)
    rows = most_relevant(text, torch.tensor([0.5, 0.7, 0.5, 0.7]), torch.ones(4, dtype=torch.bool), 4)
    assert rows.argmax(-1).tolist() == [1, 3, 0, 2]


def test_half_precision_is_scored_in_float32():
    image, text = torch.randn(6, 8).bfloat16(), torch.randn(3, 8).bfloat16()
    scores = relevance(image, text)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, relevance(image.float(), text.float()))


def test_autocast_does_not_round_it():
    torch.manual_seed(0)
    image, words = torch.randn(9, 64), torch.randn(5, 64)
    exact = relevance(image, words)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(relevance(image, words), exact)


@given(st.integers(0, 6), st.integers(0, 8), st.integers(0, 5), st.booleans())
def test_the_same_words_in_the_order_of_the_text(words, k, masked, spill):
    generator = torch.Generator().manual_seed(words)
    text, scores = torch.randn(words, 4, generator=generator), torch.randn(words, generator=generator)
    mask = torch.arange(words) >= masked
    best = most_relevant(text, scores, mask, k, spill=spill)
    rows = most_relevant(text, scores, mask, k, spill=spill, in_text_order=True)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, best.tolist()))
    found = [int((text == row).all(-1).nonzero()[0]) for row in rows if bool(row.any())]
    allowed = [word for word in found if mask[word]]
    assert found == sorted(allowed) + sorted(set(found) - set(allowed))


def test_ten_thousand_orders_are_the_same_in_both_types():
    """Of numbers that bfloat16 holds, given in it and in float32: relevance is float32's in either case."""
    generator = torch.Generator().manual_seed(0)
    swaps = 0
    for _ in range(10):
        image = torch.randn(1000, 16, 32, generator=generator).bfloat16()
        words = torch.randn(1000, 10, 32, generator=generator).bfloat16()
        half, full = relevance(image, words), relevance(image.float(), words.float())
        swaps += int((half.argsort(stable=True) != full.argsort(stable=True)).any(-1).sum())
    assert swaps == 0


@given(COUNTS, COUNTS, st.integers(0, 3))
def test_a_words_relevance_does_not_depend_on_the_other_words(tokens, words, seed):
    """Bit for bit, so that padding and neighbours in a batch change no order."""
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, tokens, 24, generator=generator), torch.randn(2, words, 24, generator=generator)
    together = relevance(image, text)
    for row, word in itertools.product(range(2), range(words)):
        assert torch.equal(relevance(image[row], text[row, word : word + 1])[0], together[row, word])
