"""What is saved loads as it was, or saving is refused: adapters, quantised hosts, changed hosts, incomplete files."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    LlavaNextForConditionalGeneration,
    QuantoConfig,
)

import tokenflex
from tests.hosts.test_untouched import lora, own_head, own_layer, own_projector
from tokenflex.errors import ConfigError
from tokenflex.model import FlexModel
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_tokenizer

EIGHT_BITS = BitsAndBytesConfig(load_in_8bit=True)


@torch.no_grad()
def same_model(one, other, inputs):
    levels = [0, 2, "finest"]
    assert torch.equal(one(**inputs, level=levels).logits, other(**inputs, level=levels).logits)
    scores = [[d.scores for d in flex.decide(**inputs)] for flex in (one, other)]
    for a, b in zip(*scores, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def second_adapter(host):
    wrapped = lora(host)
    wrapped.add_adapter("second", LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    wrapped.set_adapter("second")
    return wrapped


ADAPTED = {
    "lora": lora,
    "dora": lambda host: lora(host, use_dora=True),
    "rank-stabilised": lambda host: lora(host, use_rslora=True, rank_pattern={"v_proj": 3}),
    "with a head of its own": lambda host: lora(host, modules_to_save=["lm_head"]),
    "two": second_adapter,
}


@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_adapters_come_back(name, tied, left, tmp_path):
    torch.manual_seed(0)
    flex = tokenflex.wrap(ADAPTED[name](tiny_llava_next(tie_word_embeddings=tied)).eval())
    if tied and name == "with a head of its own":  # PEFT itself warns that the two don't go together
        with pytest.raises(ConfigError, match="a layer whose weights are tied"):
            flex.save_pretrained(tmp_path)
        assert list(tmp_path.iterdir()) == []
        return
    flex.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert flex.state_dict().keys() == again.state_dict().keys()
    assert again.host.active_adapters == flex.host.active_adapters
    same_model(flex, again, left)
    trainable = [{n for n, p in model.host.named_parameters() if p.requires_grad} for model in (flex, again)]
    assert trainable[0] == trainable[1] != set()


def test_adapters_in_float32_beside_half_precision_come_back_in_float32(tmp_path):
    flex = tokenflex.wrap(lora(tiny_llava_next().to(torch.bfloat16)))
    flex.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    types = [{n: p.dtype for n, p in model.named_parameters()} for model in (flex, again)]
    assert types[0] == types[1]
    assert set(types[0].values()) == {torch.bfloat16, torch.float32}


class Mine(LlavaNextForConditionalGeneration):
    """A user's own class, which no configuration names."""


def own_class():
    host = tiny_llava_next()
    host.__class__ = Mine
    return host


def merged():
    host = lora(tiny_llava_next())
    host.merge_adapter()
    return host


def injected():
    return inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), tiny_llava_next())


def resized_behind_its_back():
    host = tiny_llava_next()
    host.lm_head = nn.Linear(32, 70, bias=False)
    return host


REFUSED = {
    "ia3": (
        lambda: get_peft_model(
            tiny_llava_next(), IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
        ),
        "IA3Config, and only LoRA",
    ),
    "merged": (merged, "merged into its weights"),
    "injected": (injected, r"q_proj \(Linear, not Linear\)|would be lost"),
    "own projector": (lambda: own_projector(tiny_llava_next()), r"linear_2 \(OwnLinear, not Linear\)"),
    "own layer": (lambda: own_layer(tiny_llava_next()), r"up_proj \(OwnLinear, not Linear\)"),
    "own class": (own_class, r"host \(Mine, not LlavaNextForConditionalGeneration\)"),
    "resized head": (resized_behind_its_back, r"lm_head.weight has the shape \(70, 32\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hosts_that_would_come_back_as_something_else_are_refused(name, tmp_path):
    make, message = REFUSED[name]
    flex = tokenflex.wrap(make())
    with pytest.raises(ConfigError, match=message):
        flex.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    flex.save_parts(tmp_path)  # the parts can always be saved


def test_tied_embeddings_come_back_tied(left, tmp_path):
    flex = tokenflex.wrap(tiny_llava_next(tie_word_embeddings=True))
    flex.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.host.lm_head.weight is again.host.get_input_embeddings().weight
    same_model(flex, again, left)


def test_an_own_head_of_the_same_kind_comes_back(left, tmp_path):
    flex = tokenflex.wrap(own_head(tiny_llava_next()))
    flex.save_pretrained(tmp_path)
    same_model(flex, AutoModelForImageTextToText.from_pretrained(tmp_path), left)


@pytest.fixture
def eight_bits(tmp_path):
    pytest.importorskip("bitsandbytes", reason="comes with the extra [test]")
    tiny_llava_next().save_pretrained(tmp_path / "host")
    return AutoModelForImageTextToText.from_pretrained(tmp_path / "host", quantization_config=EIGHT_BITS)


def quantised(model):
    return {name for name, module in model.named_modules() if "8bit" in type(module).__name__}


def test_a_quantised_host_comes_back_quantised_and_its_parts_do_not(eight_bits, left, tmp_path):
    torch.manual_seed(0)
    flex = tokenflex.wrap(eight_bits)
    before = quantised(flex)
    assert before
    flex.save_pretrained(tmp_path / "flex")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "flex")
    assert quantised(again) == before
    same_model(flex, again, left)
    again.save_pretrained(tmp_path / "once more")
    same_model(flex, AutoModelForImageTextToText.from_pretrained(tmp_path / "once more"), left)
    assert not hasattr(flex, "hf_quantizer")
    assert "quantization_config" not in flex.config.__dict__


def test_a_quantised_host_is_not_cast(eight_bits):
    flex = tokenflex.wrap(eight_bits)
    for cast in (lambda: flex.to(torch.float16), lambda: flex.half(), lambda: flex.float(), lambda: flex.bfloat16()):
        with pytest.raises(ConfigError, match="quantised, and casting would destroy"):
            cast()
    assert flex.to("cpu") is flex


def test_where_a_host_was_placed_is_known_of_the_whole_model():
    host = tiny_llava_next()
    host.hf_device_map = {"": "cpu"}
    assert tokenflex.wrap(host).hf_device_map == {"host": "cpu"}
    host.hf_device_map = {"model": "cpu", "lm_head": "disk"}
    assert tokenflex.wrap(host).hf_device_map == {"host.model": "cpu", "host.lm_head": "disk"}
    assert not hasattr(tokenflex.wrap(tiny_llava_next()), "hf_device_map")


def test_a_saved_model_can_be_quantised_while_it_is_loaded(left, tmp_path):
    pytest.importorskip("bitsandbytes", reason="comes with the extra [test]")
    tokenflex.wrap(tiny_llava_next()).save_pretrained(tmp_path)
    flex = AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=EIGHT_BITS)
    assert quantised(flex)
    assert all(name.startswith("host.") for name in quantised(flex))
    assert "host.lm_head" not in quantised(flex)
    assert len(flex.decide(**left)) == 3


def test_what_transformers_can_not_save_is_refused(tmp_path):
    pytest.importorskip("optimum.quanto", reason="comes with the extra [test]")
    tiny_llava_next().save_pretrained(tmp_path / "host")
    settings = QuantoConfig(weights="int8")
    host = AutoModelForImageTextToText.from_pretrained(tmp_path / "host", quantization_config=settings)
    with pytest.raises(ConfigError, match="quantised with quanto, which transformers can't save"):
        tokenflex.wrap(host).save_pretrained(tmp_path / "flex")


def edited(folder: Path, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


DAMAGE = {
    "router": (lambda s: s.pop("compressor.router.mlp.0.weight"), r"compressor.router.mlp.0.weight is missing"),
    "voter": (lambda s: s.pop("compressor.voter.weight"), r"compressor.voter.weight is missing"),
    "host": (lambda s: s.pop("host.lm_head.weight"), r"host.lm_head.weight is missing"),
    "surplus": (lambda s: s.update({"compressor.router.more": torch.zeros(2)}), r"compressor.router.more has no place"),
    "nan": (lambda s: s["compressor.router.mlp.0.weight"].fill_(float("nan")), r"router.mlp.0.weight"),
    "infinite": (lambda s: s["compressor.voter.weight"].fill_(float("inf")), r"voter.weight"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_incomplete_models_are_refused(name, tmp_path):
    tokenflex.wrap(tiny_llava_next()).save_pretrained(tmp_path)
    change, message = DAMAGE[name]
    edited(tmp_path, change)
    with pytest.raises(ConfigError, match=message):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


class Counting(AveragePoolScaler):
    """A scaler with a table that isn't saved."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AveragePoolScaler.Config):
        """The same settings."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("table", torch.arange(6), persistent=False)


def test_tables_that_are_not_saved_are_made_again(tmp_path):
    with tokenflex.scalers.temporary("counting", Counting):
        flex = tokenflex.wrap(tiny_llava_next(), scaler="counting")
        flex.save_pretrained(tmp_path)
        again = AutoModelForImageTextToText.from_pretrained(tmp_path)
        assert again.compressor.scaler.table.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_hosts_configuration_is_the_models(left, tmp_path):
    host = tiny_llava_next()
    flex = tokenflex.wrap(host)
    assert flex.config.host is host.config
    host.config.vision_feature_layer = -1
    host.resize_token_embeddings(len(tiny_tokenizer()) + 3, mean_resizing=False)
    flex.save_pretrained(tmp_path)
    same_model(flex, AutoModelForImageTextToText.from_pretrained(tmp_path), left)


def test_settings_on_the_models_configuration_reach_the_host(tmp_path):
    host = tiny_llava_next()
    flex = tokenflex.wrap(host)
    flex.config.use_cache = False
    flex.config.output_hidden_states = True
    assert host.config.use_cache is False
    assert host.config.output_hidden_states is True
    assert flex.config.image_token_id == 4
    assert flex.config.text_config is host.config.text_config
    assert not hasattr(flex.config, "no_such_setting")
    flex.save_pretrained(tmp_path)
    implementations = {"text_config": "eager", "vision_config": "sdpa"}
    again = FlexModel.from_pretrained(tmp_path, attn_implementation=implementations)
    assert again.host.config.text_config._attn_implementation == "eager"
    assert again.host.config.vision_config._attn_implementation == "sdpa"
    assert again.host.config.output_hidden_states is True
    data = json.loads((tmp_path / "config.json").read_text())
    assert "output_hidden_states" not in data
    assert data["host"]["output_hidden_states"] is True


def test_a_loaded_model_and_its_host_generate_by_the_same_settings(left, tmp_path, caplog):
    flex = tokenflex.wrap(tiny_llava_next())
    flex.generation_config.max_new_tokens = 3
    flex.save_pretrained(tmp_path)
    again = FlexModel.from_pretrained(tmp_path)
    assert again.host.generation_config == again.generation_config
    assert again.generate(**left).shape[1] == left["input_ids"].shape[1] + 3
