"""The smallest concave curve above a table of values."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.ops.convexity import concave

TABLES = st.integers(1, 6).flatmap(
    lambda levels: st.tuples(
        st.lists(st.floats(-4, 4), min_size=levels, max_size=levels),
        st.lists(st.integers(0, 9), min_size=levels, max_size=levels).map(sorted),
    )
)


def slopes(values, costs):
    steps = costs.diff()
    return values.diff()[steps > 0] / steps[steps > 0]


def test_a_dent_is_filled():
    found = concave(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0, 2, 4, 6]))
    assert found.tolist() == [0.0, 0.5, 1.0, 1.0]


@given(TABLES)
def test_it_is_above_concave_and_touches(table):
    values, costs = torch.tensor(table[0], dtype=torch.float64), torch.tensor(table[1])
    found = concave(values, costs)
    assert bool((found >= values).all())
    assert found.max() == values.max()
    assert bool((slopes(found, costs).diff() <= 1e-9).all())
    torch.testing.assert_close(concave(found, costs), found)


@given(st.lists(TABLES.filter(lambda table: len(table[0]) == 4), min_size=1, max_size=3))
def test_rows_are_apart(tables):
    values = torch.tensor([table[0] for table in tables], dtype=torch.float64)
    costs = torch.tensor([table[1] for table in tables])
    together = concave(values, costs)
    for row, one, its in zip(together, values, costs, strict=True):
        torch.testing.assert_close(row, concave(one, its))
