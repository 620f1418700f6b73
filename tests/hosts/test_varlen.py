"""Attention of variable length: packed rows as if each were alone, other rows as sdpa has them."""

import pytest
import torch

import tokenflex
from tests.hosts.served import served
from tests.training.test_levels import gradients, same
from tokenflex.errors import InputError
from tokenflex.hosts import varlen
from tokenflex.hosts.packed import pack
from tokenflex.hosts.targets import shifted, target_logits
from tokenflex.testing.host_bench import ROWS, labels_of
from tokenflex.training import STAGES
from tokenflex.training.levels import at_level
from tokenflex.training.stages import select

HOSTS = ("llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "mistral3")


@pytest.fixture(params=HOSTS)
def model(request):
    torch.manual_seed(0)
    host = served(request.param).build()
    flex = tokenflex.wrap(host).eval()
    host.set_attn_implementation(varlen.register())
    inputs = served(request.param).batch(host.config, ROWS, side="right")
    return flex, {**inputs, "labels": labels_of(inputs)}


@torch.no_grad()
def test_packed_rows_and_padded_ones(model, monkeypatch):
    flex, batch = model
    encoded = flex.encode(batch)
    batches = [at_level(flex, batch, encoded, level) for level in (0, 3, 4)]
    packed = pack(flex.adapter, batches)
    targets = shifted(packed.pop("labels"))
    rows = []
    original = varlen._row
    monkeypatch.setattr(varlen, "_row", lambda *args: (rows.append(args[0].shape[2]), original(*args))[1])
    found = target_logits(flex.host, packed, targets != -100)
    layers = flex.host.config.get_text_config().num_hidden_layers
    assert len(rows) == layers * len(batches) * len(ROWS)
    expected = []
    for one in batches:
        aims = shifted(one.pop("labels"))
        expected.append(target_logits(flex.host, one, aims != -100))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert len(rows) == layers * len(batches) * len(ROWS)
    flex.host.set_attn_implementation("sdpa")
    torch.testing.assert_close(found, target_logits(flex.host, packed, targets != -100), rtol=1e-4, atol=1e-4)


def test_same_gradients(model):
    flex, batch = model
    select(flex, STAGES[3])
    found = gradients(flex, batch, memory="packed")
    flex.host.set_attn_implementation("sdpa")
    same(found, gradients(flex, batch, memory="joint"))


def test_generation_is_sdpas(model):
    flex, batch = model
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    found = flex.generate(**inputs, level=2, max_new_tokens=4, min_new_tokens=4)
    flex.host.set_attn_implementation("sdpa")
    assert torch.equal(found, flex.generate(**inputs, level=2, max_new_tokens=4, min_new_tokens=4))


class Layer(torch.nn.Module):
    is_causal = True
    num_key_value_groups = 2


@pytest.mark.parametrize("window", [None, 2, 9])
def test_windows_and_grouped_queries(window):
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    ends = torch.tensor([0, 4, 5, 9], dtype=torch.int32)
    found, _ = varlen.varlen_attention(
        Layer(), query, key, value, None, cu_seq_lens_q=ends, max_length_q=4, sliding_window=window
    )
    place = torch.arange(9)
    row = torch.bucketize(place, ends[1:], right=True)
    back = place[:, None] - place
    mask = (row[:, None] == row) & (back >= 0) & (back < (window or 99))
    scores = query @ key.repeat_interleave(2, 1).mT / 8**0.5
    expected = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_caps_are_refused():
    query = torch.randn(1, 2, 3, 4)
    ends = torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(InputError, match="no softcap"):
        varlen.varlen_attention(Layer(), query, query, query, None, cu_seq_lens_q=ends, max_length_q=3, softcap=30.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 16])
def test_flash_on_cuda(window):
    torch.manual_seed(0)
    query = torch.randn(1, 4, 90, 64, device="cuda", dtype=torch.bfloat16)
    key, value = torch.randn_like(query[:, :2]), torch.randn_like(query[:, :2])
    ends = torch.tensor([0, 40, 50, 90], dtype=torch.int32, device="cuda")
    given = {"cu_seq_lens_q": ends, "max_length_q": 40, "sliding_window": window}
    found, _ = varlen.varlen_attention(Layer(), query, key, value, None, **given)
    exact = (t.float() for t in (query, key, value))
    torch.testing.assert_close(
        found.float(), varlen.varlen_attention(Layer(), *exact, None, **given)[0], rtol=2e-2, atol=2e-2
    )
