"""Cosines in which equals stay equal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflex.ops.keeping import cosines
from tokenflex_matching.likeness import likeness


def test_worked_example():
    # (1, 0) with (3, 4): 0.6, the nearest multiple of 1/65536 to which is 39322/65536; with (0, 2): 0; with itself: 1.
    left, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0], [5.0, 0.0]])
    assert likeness(left, right).tolist() == [[39322 / 65536, 0.0, 1.0]]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), left=st.integers(1, 9), right=st.integers(1, 9))
def test_cosines_up_to_a_step(seed, left, right):
    generator = torch.Generator().manual_seed(seed)
    rows, others = torch.randn(2, left, 5, generator=generator), torch.randn(2, right, 5, generator=generator)
    assert torch.allclose(likeness(rows, others), cosines(rows, others), atol=0.51 / 65536, rtol=0)


@pytest.mark.parametrize("tokens", [9, 12, 15, 20, 35, 64])
@pytest.mark.parametrize("dim", [3, 32, 33, 100, 768])
def test_equal_rows_are_exactly_alike(tokens, dim):
    rows = torch.randn(dim, generator=torch.Generator().manual_seed(dim)).expand(2, tokens, dim)
    assert bool((likeness(rows[:, 0::2], rows[:, 1::2]) == 1).all())
