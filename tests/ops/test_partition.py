"""Groups of similar length: the cheapest there are, none of them for nothing, and quickly found."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.ops.partition import CALL, cost, partition

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def every_partition(count):
    """All ways to put rows into groups."""
    for labels in product(range(count), repeat=count):
        if all(label <= max(labels[:i], default=-1) + 1 for i, label in enumerate(labels)):
            yield [[row for row in range(count) if labels[row] == label] for label in range(max(labels) + 1)]


@pytest.mark.parametrize(
    ("lengths", "call", "expected"),
    [
        ([], 5, []),
        ([7], 5, [[0]]),
        ([9, 9, 9], 0, [[0, 1, 2]]),
        ([100, 10, 100, 10], 5, [[1, 3], [0, 2]]),
        ([10, 13, 12], 5, [[0, 1, 2]]),
        ([10, 15, 10, 30], 10, [[0, 2, 1], [3]]),
        ([1, 2, 3], 0, [[0], [1], [2]]),
        ([1, 2], 1, [[0, 1]]),
    ],
)
def test_worked_examples(lengths, call, expected):
    assert partition(lengths, call) == [sorted(rows) for rows in expected]


@given(LENGTHS, st.integers(0, 30), st.integers(0, 30))
def test_no_other_groups_cost_less(lengths, call, apart):
    found = partition(lengths, call, apart)
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))

    def worth(groups):
        return cost(lengths, groups, call) + apart * (len(groups) > 1)

    assert worth(found) == min(map(worth, every_partition(len(lengths))))


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=64), st.integers(0, 200))
def test_never_more_work_than_padded(lengths, call):
    """In tokens, in pairs of tokens, and once calls count."""
    longest = max(lengths)
    groups = partition(lengths, call)
    sizes = [(len(rows), max(lengths[row] for row in rows)) for rows in groups]
    for power in (1, 2):
        assert sum(rows * size**power for rows, size in sizes) <= len(lengths) * longest**power
    assert cost(lengths, groups, call) <= cost(lengths, [range(len(lengths))], call)


@given(st.integers(1, 50), st.integers(1, 3000), st.integers(0, 100))
def test_equal_lengths_stay_together(count, length, call):
    assert partition([length] * count, call) == [list(range(count))]


@given(LENGTHS, st.permutations(range(6)))
def test_the_order_of_rows_changes_nothing_else(lengths, order):
    shuffled = [lengths[i] for i in order if i < len(lengths)]
    sizes = [sorted(rows[row] for row in group) for rows in (lengths,) for group in partition(rows, 7)]
    assert sizes == [sorted(shuffled[row] for row in group) for group in partition(shuffled, 7)]


def test_what_parting_costs_keeps_rows_together():
    lengths = [10, 10, 100]
    assert partition(lengths, 20) == [[0, 1], [2]]
    assert partition(lengths, 20, apart=160) == [[0, 1, 2]]


def test_a_large_batch_of_different_lengths():
    groups = partition(list(range(1, 4097, 4)), CALL)
    assert sorted(row for rows in groups for row in rows) == list(range(1024))
    assert 1 < len(groups) < 1024
