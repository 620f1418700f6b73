"""Joined caches hold what the padded batch's cache holds, whatever the groups, the side and the window."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicLayer

from tests.hosts.served import served
from tokenflex.hosts import joining
from tokenflex.ops.partition import partition

SHAPE = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 8, "intermediate_size": 8}


def filled(config, keys):
    """A cache after one call on all of these tokens."""
    cache = DynamicCache(config=config)
    for layer in range(2):
        cache.update(keys + layer, -keys - layer, layer)
    return cache


def row(length, total, side, number):
    """Different numbers at a row's tokens, zeros at padding."""
    values = torch.arange(1.0, length + 1) + 1000 * number
    padding = torch.zeros(total - length)
    return torch.cat([padding, values] if side == "left" else [values, padding])


def table(lengths, numbers, side):
    total = max(lengths[i] for i in numbers)
    made = torch.stack([row(lengths[i], total, side, i) for i in numbers])
    return made[:, None, :, None].expand(-1, 2, -1, 4)


@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=6), st.sampled_from(["left", "right"]), st.sampled_from([None, 5])
)
@settings(deadline=None)
def test_columns_stand_where_the_padded_batch_has_them(lengths, side, window):
    config = LlamaConfig(**SHAPE) if window is None else MistralConfig(**SHAPE, sliding_window=window)
    groups = partition(lengths, 0)
    caches = [filled(config, table(lengths, rows, side)) for rows in groups]
    joined = joining.join(caches, groups, [max(lengths[i] for i in rows) for rows in groups], max(lengths), side)
    real = table(lengths, range(len(lengths)), side)[:, :, -joined.layers[0].keys.shape[2] :] != 0
    padded = filled(config, table(lengths, range(len(lengths)), side))
    for one, other in zip(joined.layers, padded.layers, strict=True):
        assert one.keys.shape == other.keys.shape
        assert one.get_seq_length() == other.get_seq_length() == max(lengths)
        assert one.get_mask_sizes(1) == other.get_mask_sizes(1)
        for name in ("keys", "values"):
            torch.testing.assert_close(getattr(one, name) * real, getattr(other, name) * real)
            assert not (getattr(one, name) * ~real).any(), "padding holds something else than zeros"


def test_other_layers_are_not_joined():
    class Mine(DynamicLayer):
        pass

    lengths, groups = [2, 3], [[0], [1]]
    caches = [filled(LlamaConfig(**SHAPE), table(lengths, rows, "left")) for rows in groups]
    caches[1].layers[1].__class__ = Mine
    assert joining.join(caches, groups, lengths, 3, "left") is None
    assert joining.join([None, None], groups, lengths, 3, "left") is None


@pytest.mark.parametrize(("name", "left", "right"), [("llava", True, True), ("qwen3_5", True, False)])
def test_states_are_those_in_front_of_the_padding(name, left, right):
    host = served(name).build()
    assert (joining.refusal(host, "left") is None, joining.refusal(host, "right") is None) == (left, right)


def test_an_unknown_layer_is_known_before_anything_runs():
    assert "aren't known" in joining.refusal(served("unlimited_ocr").build(), "left")
