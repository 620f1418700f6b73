"""Composed of files that lie here: a language model in GGUF, and an encoder's weights."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

import tokenflex
from tokenflex.errors import ConfigError
from tokenflex.testing.tiny_hosts import tiny_tokenizer

NAME = "tf_efficientnet_lite0"
HEADS, KEYS, SIDE = 4, 2, 64
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Of a layer's modules: transformers' name and that of the file format."""


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def llama(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        max_position_embeddings=256,
    )
    return LlamaForCausalLM(config).eval()


def interleaved(weight, heads):
    """Rows of a projection in the file's order: the two halves of each head's rotated dimensions take turns."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture
def file(llama, tmp_path):
    gguf = pytest.importorskip("gguf", reason="the optional package gguf isn't installed")
    config, path = llama.config, tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    state = {name: value.detach().numpy() for name, value in llama.state_dict().items()}
    tensors = {
        "token_embd": state["model.embed_tokens.weight"],
        "output_norm": state["model.norm.weight"],
        "output": state["lm_head.weight"],
    }
    for layer in range(config.num_hidden_layers):
        for name, short in NAMES.items():
            value = state[f"model.layers.{layer}.{name}.weight"]
            heads = {"attn_q": HEADS, "attn_k": KEYS}.get(short)
            tensors[f"blk.{layer}.{short}"] = value if heads is None else interleaved(value, heads)
    for name, value in tensors.items():
        writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    return timm.create_model(NAME, pretrained=False).eval()


def composed(language, tokenizer, **told):
    return tokenflex.compose(
        f"timm/{NAME}", language, tokenizer=tokenizer, pretrained=False, image_size=SIDE, layer=-2, **told
    )


def test_a_gguf_file_is_the_model_that_was_written(file, llama, tokenizer):
    model, _ = composed(str(file), tokenizer)
    ids = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, llama(input_ids=ids).logits, atol=1e-5)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_it_is_trained_and_saved_as_any_other(file, tokenizer, tmp_path):
    model, processor = composed(str(file), tokenizer)
    out = tmp_path / "out"
    model.save_pretrained(out)
    processor.save_pretrained(out)
    again = AutoModelForImageTextToText.from_pretrained(out)
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert "gguf" not in (out / "config.json").read_text()
    ids = torch.arange(5, 15).view(1, 10)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_the_type_of_a_gguf_file_can_be_chosen(file, tokenizer):
    assert composed(str(file), tokenizer, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_a_damaged_gguf_file_is_refused(file, tokenizer):
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ConfigError, match=r"tiny\.gguf.*can't be loaded as a causal language model"):
        composed(str(file), tokenizer)
    with pytest.raises(ConfigError, match="can't be loaded as a causal language model"):
        composed(str(file.with_name("absent.gguf")), tokenizer)


def test_without_the_package_it_is_named(tokenizer, monkeypatch):
    monkeypatch.setattr("tokenflex.composed.gguf.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"gguf is needed: pip install \"tokenflex\[custom\]\""):
        composed("somewhere/model.gguf", tokenizer)


@pytest.mark.parametrize("form", ["safetensors", "torch", "wrapped", "named"])
def test_an_encoders_weights_are_those_of_the_file(encoder, llama, tokenizer, tmp_path, form):
    state = dict(encoder.state_dict())
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "torch":
        torch.save({name: value for name, value in state.items() if "num_batches" not in name}, path)
    elif form == "named":
        path = state
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    model, _ = composed(llama, tokenizer, vision_weights=path)
    found = model.vision_tower.trunk.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.items() if "num_batches" not in name)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = encoder.forward_intermediates(pixels, indices=[-2], intermediates_only=True)[0]
        assert torch.equal(model.vision_tower(pixels), expected)


def test_weights_of_another_encoder_are_refused(encoder, llama, tokenizer, tmp_path):
    path = tmp_path / "weights.pth"
    state = dict(encoder.state_dict())
    for change, message in (
        ({"conv_stem.weight": None}, "conv_stem.weight is missing"),
        ({"extra.weight": torch.zeros(1)}, "extra.weight has no place"),
        ({"conv_stem.weight": torch.zeros(2, 3)}, r"conv_stem.weight has the shape \[2, 3\], not \[32, 3, 3, 3\]"),
    ):
        torch.save({name: value for name, value in {**state, **change}.items() if value is not None}, path)
        with pytest.raises(ConfigError, match=f"of another encoder: .*{message}"):
            composed(llama, tokenizer, vision_weights=path)


def test_weights_that_are_not_finite_are_refused(encoder, llama, tokenizer):
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    state["conv_stem.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ConfigError, match=r"hold NaN or infinity in conv_stem\.weight"):
        composed(llama, tokenizer, vision_weights=state)


def test_a_tokenizer_that_cannot_be_read_is_refused(llama, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    for name in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="no tokenizer can be loaded from"):
            composed(llama, str(name))


class Surprise:
    """Would run code where pickles are trusted."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_files_that_hold_something_else_are_refused(llama, tokenizer, tmp_path, capsys):
    path = tmp_path / "weights.pth"
    torch.save({"a": Surprise()}, path)
    with pytest.raises(ConfigError, match="can't be read as weights"):
        composed(llama, tokenizer, vision_weights=path)
    assert "unpickled" not in capsys.readouterr().out
    torch.save({"a": 3}, path)
    with pytest.raises(ConfigError, match="isn't tensors by name"):
        composed(llama, tokenizer, vision_weights=path)
    with pytest.raises(ConfigError, match="can't be read"):
        composed(llama, tokenizer, vision_weights=tmp_path / "absent.pth")
    with pytest.raises(ConfigError, match="goes with 'timm/NAME'"):
        tokenflex.compose("some/folder", llama, tokenizer=tokenizer, vision_weights=path)
