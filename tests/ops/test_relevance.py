"""The text filter in its cheap form against the table of cosines."""

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
