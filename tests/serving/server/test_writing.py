"""Text given out never changes, and all of it together is the text of all tokens up to where the answer ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.serving.server.writing import Writing

END = 256


def decode(ids):
    return bytes(i for i in ids if i != END).decode("utf-8", errors="replace")


@given(st.text("ab\N{SNOWMAN}", max_size=12), st.lists(st.text("ab\N{SNOWMAN}", min_size=1, max_size=3), max_size=3))
def test_pieces_are_the_text_up_to_the_first_stop(text, stop):
    pieces, ids = [], [*text.encode(), END]
    writing = Writing(decode, {END}, stop, 100, pieces.append)
    for token in ids:
        if writing.put(token):
            break
    begun = (text[:end] for end in range(len(text) + 1))
    first = next((part for part in begun if any(one in part for one in stop)), None)
    expected = text if first is None else first[: min(first.index(one) for one in stop if one in first)]
    assert "".join(pieces) == writing.text == expected
    assert writing.reason == "stop"


@given(st.text("ab\N{SNOWMAN}", min_size=1, max_size=12), st.integers(1, 12))
def test_the_limit_counts_tokens(text, limit):
    ids = list(text.encode())
    pieces, writing = [], Writing(decode, {END}, (), limit, None)
    told = Writing(decode, {END}, (), limit, pieces.append)
    for token in ids:
        assert writing.put(token) == told.put(token)
    expected = decode(ids[:limit])
    if len(ids) >= limit:
        assert (writing.text, "".join(pieces), writing.reason) == (expected, expected, "length")
        assert writing.put(ids[0])
        assert len(writing.ids) == limit
    else:
        assert writing.reason == ""


@pytest.mark.parametrize(("stop", "held"), [("xyz", "ab"), ("bcd", "a"), ("abc", "")])
def test_the_beginning_of_a_stop_is_held_back(stop, held):
    pieces = []
    writing = Writing(decode, {END}, [stop], 100, pieces.append)
    for token in b"ab":
        writing.put(token)
    assert "".join(pieces) == held
    writing.put(END)
    assert "".join(pieces) == "ab"


def test_the_token_that_ends_an_answer_is_counted_and_not_shown():
    writing = Writing(lambda ids: "".join(f"<{i}>" for i in ids), {9}, (), 10)
    assert [writing.put(token) for token in (1, 2, 9, 4)] == [False, False, True, True]
    assert (writing.text, len(writing.ids), writing.reason) == ("<1><2>", 3, "stop")
