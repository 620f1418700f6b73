"""Places spread evenly over a grid."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflex.contracts import Grid
from tokenflex_matching.spatial_sample import spread


@settings(max_examples=60, deadline=None)
@given(grid=st.builds(Grid, st.integers(1, 9), st.integers(1, 9)), share=st.floats(0, 1))
def test_sample_has_exactly_as_many_places(grid, share):
    count = int(share * grid.tokens)
    places = spread(grid, count)
    assert len(set(places)) == count
    assert places == sorted(places)
    assert all(0 <= place < grid.tokens for place in places)


def test_sample_is_spread_over_rows_and_columns():
    # Nine of 6 x 6: the middles (rounded up) of three bands of two rows and columns.
    assert spread(Grid(6, 6), 9) == [7, 9, 11, 19, 21, 23, 31, 33, 35]
    places = spread(Grid(24, 24), 24)
    assert len({place % 24 for place in places}) >= 4
    assert len({place // 24 for place in places}) == 5
