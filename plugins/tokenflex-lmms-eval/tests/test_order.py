from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflex_lmms_eval.order import batches

REQUESTS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=30)


def test_by_hand():
    """Keys a and b apart, longest first, equals in their order, two at a time."""
    assert batches(["a", "b", "a", "a", "b"], [3, 1, 5, 3, 1], 2) == [[2, 0], [3], [1, 4]]
    assert batches([], [], 4) == []


@settings(max_examples=25, deadline=None)
@given(REQUESTS, st.integers(1, 5))
def test_every_place_once_alike_and_longest_first(requests, size):
    keys, lengths = [key for key, _ in requests], [length for _, length in requests]
    found = batches(keys, lengths, size)
    assert sorted(place for batch in found for place in batch) == list(range(len(requests)))
    assert all(1 <= len(batch) <= size and len({keys[place] for place in batch}) == 1 for batch in found)
    for key in set(keys):
        ordered = [place for batch in found for place in batch if keys[place] == key]
        assert ordered == sorted(ordered, key=lambda place: (-lengths[place], place))
    full = [len(batch) for batch in found]
    assert sum(count < size for count in full) <= len(set(keys))
