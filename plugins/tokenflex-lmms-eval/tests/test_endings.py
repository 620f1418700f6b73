import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflex.testing.tiny_hosts import tiny_tokenizer
from tokenflex_lmms_eval.endings import StopBefore, ending

TOKENIZER = tiny_tokenizer()
PAD, EOS = 0, 2


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("row", "until", "expected"),
    [
        (ids("w1 w2 w3"), (), ("w1 w2 w3", 3, "length")),
        ([*ids("w1 w2"), EOS, PAD, PAD], (), ("w1 w2", 3, "eos")),
        ([*ids("w1 w2 w3"), PAD], ("w2",), ("w1", 2, "until")),
        ([*ids("w1 w2 w3"), EOS], ("w9",), ("w1 w2 w3", 4, "eos")),
        (ids("w1 w2 w3"), ("w3", "2 w"), ("w1 w", 3, "until")),
        ([*ids("w1"), EOS, *ids("w2")], ("w2",), ("w1", 2, "eos")),
        (ids("w1 w2"), ("w1",), ("", 1, "until")),
        ([EOS, PAD], ("w1",), ("", 1, "eos")),
    ],
)
def test_by_hand(row, until, expected):
    found = ending(TOKENIZER, row, until, [EOS], PAD)
    assert (found.text, found.tokens, found.stopped) == expected


def test_rows_filled_up_with_the_end_token():
    """A row that ended before one of the texts is told from one that ended by itself."""
    row = [*ids("w1 w2"), EOS, EOS]
    assert ending(TOKENIZER, row, (), [EOS], EOS).tokens == 3
    assert ending(TOKENIZER, row, ("w2",), [EOS], EOS) == ending(TOKENIZER, ids("w1 w2"), ("w2",), [EOS], EOS)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([f"w{i}" for i in range(12)]), min_size=1, max_size=12), st.integers(0, 11))
def test_tokens_are_the_shortest_prefix_that_has_the_text(words, stop):
    found = ending(TOKENIZER, ids(" ".join(words)), (f"w{stop}",), [EOS], PAD)
    prefixes = [" ".join(words[:count]) for count in range(1, len(words) + 1)]
    having = [count for count, text in enumerate(prefixes, 1) if f"w{stop}" in text]
    assert found.stopped == ("until" if having else "length")
    assert found.tokens == (having[0] if having else len(words))
    assert f"w{stop}" not in found.text


def test_stopping_looks_at_new_tokens_only():
    prompt, rows = ids("w7 w8"), [ids("w1 w2"), ids("w8 w7"), ids("w7 w1")]
    criterion = StopBefore(TOKENIZER, ("w7",))
    steps = [torch.tensor([prompt + row[:count] for row in rows]) for count in (1, 2)]
    assert [criterion(step, None).tolist() for step in steps] == [[False, False, True], [False, True, True]]
