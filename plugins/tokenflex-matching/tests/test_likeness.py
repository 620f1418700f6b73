"""Cosines in which equals stay equal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflex.ops.keeping import cosines
from tokenflex_matching.likeness import ROUNDING, first_best, largest, likeness


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


def test_the_first_of_the_best():
    values = torch.tensor([[0.1, 0.5, 0.5 + ROUNDING / 2, 0.2], [0.1, 0.5, 0.5 + 2 * ROUNDING, 0.2]])
    assert first_best(values).tolist() == [1, 2]


def test_the_largest_go_by_index_where_they_are_equal():
    values = torch.tensor([[0.5, 0.9, 0.5 + ROUNDING / 2, 0.5, 0.1], [0.5, 0.5, 0.5 + 2 * ROUNDING, 0.9, 0.9]])
    assert largest(values, 2).tolist() == [[True, True, False, False, False], [False, False, False, True, True]]
    assert largest(values, 3).tolist() == [[True, True, True, False, False], [False, False, True, True, True]]


@given(seed=st.integers(0, 99), count=st.integers(1, 12), levels=st.sampled_from([2, 5, 1000]))
def test_the_largest_are_so_many_and_the_first_of_a_stable_order(seed, count, levels):
    values = torch.randint(0, levels, (3, 12), generator=torch.Generator().manual_seed(seed)) / levels
    order = values.argsort(dim=-1, descending=True, stable=True)[..., :count]
    assert torch.equal(largest(values, count), torch.zeros(3, 12, dtype=torch.bool).scatter(-1, order, True))
