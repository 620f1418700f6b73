"""Putting models together: every source, weights, saving, processors, training, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaProcessor,
    MambaConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import tokenflex
from tests.composed.conftest import LANGUAGES, OPEN_CLIP, TIMM, VISION, make
from tests.conftest import image
from tokenflex.cli.main import main
from tokenflex.composed import ComposedForConditionalGeneration, vision
from tokenflex.composed.processor import VICUNA, chat_template
from tokenflex.errors import ConfigError
from tokenflex.testing.tiny_hosts import tiny_tokenizer
from tokenflex.training import ChatDataset, FlexCollator

TURN = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w1"}]}]
QUESTION = [*TURN, {"role": "assistant", "content": [{"type": "text", "text": "w2"}]}]


def llama():
    return LANGUAGES["llama"]()


def compose(vision, language=None, **options):
    told = {"tokenizer": tiny_tokenizer(), "pretrained": False, **options}
    return tokenflex.compose(vision, language or llama(), **told)


def features(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return model.get_image_features(torch.randn(2, 3, *model.config.image_size, generator=generator)).pooler_output


@torch.no_grad()
def test_a_saved_model_loads_through_the_auto_classes(host, processor, batch, tmp_path):
    host.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    inputs = batch("w1 <image> w2", "w3")
    loaded, found = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is ComposedForConditionalGeneration
    assert torch.equal(host(**inputs).logits, loaded(**inputs).logits)
    assert type(found) is LlavaProcessor
    again = found(images=[image(0)], text=["w1 <image> w2", "w3"], padding=True, return_tensors="pt")
    assert all(torch.equal(again[key], inputs[key]) for key in inputs)
    assert AutoConfig.from_pretrained(tmp_path).vision["source"] == host.config.vision["source"]
    assert loaded.generation_config.eos_token_id == 2


def test_host_and_parts_save_and_load_as_one(flex, batch, tmp_path):
    inputs = batch("w1 <image> w2")
    flex.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(loaded.decide(**inputs)[0].scores, flex.decide(**inputs)[0].scores)
    assert torch.equal(loaded.generate(**inputs, max_new_tokens=3), flex.generate(**inputs, max_new_tokens=3))


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("vit_small_patch14_reg4_dinov2", 56, [4, 4]),  # registers
        ("eva02_tiny_patch14_224", 56, [4, 4]),  # rotary tables, which a file doesn't usually hold
        ("resnet10t", (64, 96), [2, 3]),  # convolutions
    ],
)
def test_any_timm_encoder_with_intermediate_features(name, size, grid, tmp_path):
    model = compose(f"timm/{name}", image_size=size).model
    assert model.config.grid == grid
    model.save_pretrained(tmp_path)
    loaded = ComposedForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(features(model), features(loaded))


def test_timm_loads_its_weights(tmp_path):
    """Through timm's own loading, here from a file."""
    import timm
    from safetensors.torch import save_file

    options = {**TIMM, "img_size": 32, "global_pool": "map", "class_token": False}
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=10, **options).eval()
    save_file(trunk.state_dict(), tmp_path / "w.safetensors")
    told = {"file": str(tmp_path / "w.safetensors"), "num_classes": 10}
    given = {**options, "pretrained_cfg_overlay": told}
    model = compose("timm/vit_tiny_patch16_224", pretrained=True, vision_options=given, image_size=32).model
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(trunk.forward_features(pixels), model.get_image_features(pixels).last_hidden_state)


def test_open_clip_loads_its_weights(tmp_path):
    """Through open_clip's own loading, here from a file."""
    import open_clip

    whole = open_clip.create_model("tiny")
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    made = compose(f"open_clip/tiny@{tmp_path / 'w.pt'}", pretrained=True)
    assert all(
        torch.equal(value, made.model.vision_tower.trunk.state_dict()[key])
        for key, value in whole.visual.state_dict().items()
    )
    assert made.processor.image_processor.image_mean == open_clip.OPENAI_DATASET_MEAN
    whole.visual.output_tokens = True
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        _, expected = whole.visual.eval()(pixels)
        assert torch.allclose(expected, made.model.get_image_features(pixels).last_hidden_state, atol=1e-6)


def test_transformers_loads_its_weights_and_its_image_settings(tmp_path):
    source = CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
    source.save_pretrained(tmp_path)
    settings = CLIPImageProcessor(crop_size=32, size={"shortest_edge": 32}, image_mean=[0.1, 0.2, 0.3])
    settings.save_pretrained(tmp_path)
    by_name = compose(str(tmp_path), pretrained=True, language=LlamaForCausalLM(llama()), layer=-2)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = source(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        assert torch.equal(expected, by_name.model.get_image_features(pixels).last_hidden_state)
    assert by_name.processor.image_processor.image_mean == (0.1, 0.2, 0.3)
    assert by_name.processor.image_processor.do_center_crop
    loaded = compose(CLIPVisionModel.from_pretrained(tmp_path), layer=-2)
    assert loaded.processor.image_processor.image_mean == (0.1, 0.2, 0.3)


def test_the_vision_half_of_a_model_for_images_and_texts():
    assert compose(CLIPConfig(vision_config=VISION)).model.config.grid == [4, 4]


def test_a_loaded_language_model_keeps_its_weights(tmp_path):
    torch.manual_seed(0)
    language = LlamaForCausalLM(llama())
    language.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for given, pretrained in ((language, False), (str(tmp_path), True)):
        made = tokenflex.compose(SiglipVisionConfig(**VISION), given, tokenizer=tiny_tokenizer(), pretrained=pretrained)
        ids = torch.tensor([[9, 10, 11]])
        with torch.no_grad():
            assert torch.equal(language(ids).logits, made.model(ids).logits)


def test_the_tokenizer_is_found_beside_the_language_model(tmp_path):
    LlamaForCausalLM(llama()).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    made = tokenflex.compose(SiglipVisionConfig(**VISION), str(tmp_path))
    assert made.processor.tokenizer.vocab == tiny_tokenizer().vocab


def test_a_tokenizer_without_image_and_padding_tokens_gets_them():
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "w1": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    config = LlamaConfig(**{**llama().to_dict(), "vocab_size": 4, "pad_token_id": None, "eos_token_id": 1})
    model, processor = compose(SiglipVisionConfig(**VISION), config, tokenizer=plain)
    assert len(plain) == 4
    assert model.config.image_token_id == 4
    assert model.get_input_embeddings().num_embeddings == model.config.text_config.vocab_size == 5
    assert processor.tokenizer.pad_token == "</s>"
    inputs = processor(images=[image(0)], text=["w1 <image>", "w1"], padding=True, return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2


def test_projectors():
    deep = compose(ViTConfig(**VISION), projector="mlp3x_gelu").model.multi_modal_projector
    assert [type(layer).__name__ for layer in deep] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert isinstance(compose(ViTConfig(**VISION), projector="linear").model.multi_modal_projector, torch.nn.Linear)


def test_a_projector_of_ones_own(tmp_path):
    mine = torch.nn.Sequential(torch.nn.LayerNorm(24), torch.nn.Linear(24, 32))
    model = compose(ViTConfig(**VISION), projector=mine).model
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="projector of your own"):
        ComposedForConditionalGeneration.from_pretrained(tmp_path)
    fresh = torch.nn.Sequential(torch.nn.LayerNorm(24), torch.nn.Linear(24, 32))
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, multi_modal_projector=fresh)
    assert torch.equal(features(model), features(loaded))


def test_dtype_goes_to_every_part(batch_of_one):
    model, processor = compose(ViTConfig(**VISION), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    inputs = batch_of_one(processor)
    flex = tokenflex.wrap(model)
    assert torch.equal(model.generate(**inputs, max_new_tokens=3), flex.generate(**inputs, level=-1, max_new_tokens=3))
    half = compose(ViTConfig(**VISION), LlamaForCausalLM(llama()).to(torch.bfloat16)).model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.fixture
def batch_of_one():
    return lambda processor: processor(images=[image(0)], text=["w1 <image> w2"], return_tensors="pt")


def test_every_part_learns(host, batch):
    inputs = batch("w1 <image> w2", "w3 <image>")
    host.zero_grad()
    host(**inputs, labels=inputs["input_ids"]).loss.backward()
    for part in (host.vision_tower, host.multi_modal_projector, host.language_model):
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())
    host.zero_grad()


def test_gradient_checkpointing_changes_no_gradient():
    model, processor = make("video")
    inputs = processor(images=[image(0)], text=["w1 <image> w2"], return_tensors="pt")
    found = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        model.train().zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        found.append(model.multi_modal_projector[0].weight.grad.clone())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_images_are_fitted_as_asked(fit):
    processor = compose(ViTConfig(**VISION), fit=fit).processor
    white = image(1).resize((40, 20)).point(lambda value: 255)
    pixels = processor.image_processor([white], return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 32, 32)
    assert bool((pixels < 0.9).any()) == (fit == "pad")


TEXT_ONLY = (
    "{% for message in messages %}<s>{{ message.role }} {{ message.content.strip() }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)


def test_chat_templates():
    tokenizer = tiny_tokenizer()
    assert chat_template(tokenizer) == tokenizer.chat_template
    tokenizer.chat_template = None
    assert chat_template(tokenizer) == VICUNA
    processor = compose(ViTConfig(**VISION), tokenizer=tokenizer).processor
    assert processor.apply_chat_template(QUESTION, tokenize=False) == "USER: <image>\nw1 ASSISTANT: w2</s>"
    prompt = processor.apply_chat_template(TURN, tokenize=False, add_generation_prompt=True)
    assert prompt == "USER: <image>\nw1 ASSISTANT: "
    tokenizer.chat_template = TEXT_ONLY
    processor = compose(ViTConfig(**VISION), tokenizer=tokenizer).processor
    expected = "<s>user <image>\nw1 </s><s>assistant w2 </s>"
    assert processor.apply_chat_template(QUESTION, tokenize=False) == expected
    tokenizer.chat_template = "{{ messages[0].role }}"
    with pytest.raises(ConfigError, match="doesn't write a turn with an image"):
        compose(ViTConfig(**VISION), tokenizer=tokenizer)


@pytest.mark.parametrize("template", [None, TEXT_ONLY])
def test_answers_are_found_in_every_template(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    processor = compose(ViTConfig(**VISION), tokenizer=tokenizer).processor
    batch = FlexCollator(processor)([ChatDataset([{"id": "a", "image": image(0), "messages": QUESTION}])[0]])
    answer = tokenizer.convert_tokens_to_ids(["w2", "</s>"])
    assert batch["labels"][batch["labels"] != -100].tolist() in (answer, [tokenizer.unk_token_id])


def test_a_recipe_trains_a_saved_model(tmp_path):
    model, processor = make("timm")
    model.save_pretrained(tmp_path / "host")
    processor.save_pretrained(tmp_path / "host")
    image(0).save(tmp_path / "0.png")
    talk = [{"from": "human", "value": "<image>\nw1"}, {"from": "gpt", "value": "w2 w3"}]
    (tmp_path / "rows.json").write_text(json.dumps([{"id": 0, "image": "0.png", "conversations": talk}] * 2))
    for stage, host in ((3, "host"), (4, "out")):
        recipe = {
            "stage": stage, "host": str(tmp_path / host), "data": str(tmp_path / "rows.json"), "use_cpu": True,
            "image_folder": str(tmp_path), "output_dir": str(tmp_path / "out"), "max_steps": 1, "warmup_steps": 0,
            "per_device_train_batch_size": 2, "save_strategy": "no", "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    trained = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert type(trained.host) is ComposedForConditionalGeneration
    before, after = model.vision_tower.state_dict(), trained.host.vision_tower.state_dict()
    assert any(not torch.equal(value, after[key]) for key, value in before.items())


TINY = "timm/vit_tiny_patch16_224"
T5 = {"d_model": 8, "num_layers": 1, "num_heads": 1, "d_ff": 8, "d_kv": 8, "vocab_size": 16}
REFUSED = {
    "timm has no model 'vit_nothing'": {"vision": "timm/vit_nothing"},
    "open_clip has no model 'nothing'": {"vision": "open_clip/nothing"},
    "doesn't say which weights": {"vision": "open_clip/tiny", "pretrained": True},
    "has no known source": {"vision": "tim/vit_tiny_patch16_224"},
    "vision is a int": {"vision": 3},
    "has no image_size and patch_size": {"vision": llama()},
    "image_size=.* but ViTModel is made for": {"image_size": 64},
    "have no place here": {"vision_options": {"depth": 2}},
    "gives no grid of patch features": {"vision": TINY, "image_size": 8, "vision_options": {**TIMM, "patch_size": 16}},
    "aren't square patches": {
        "vision": TINY,
        "image_size": (32, 64),
        "vision_options": {**TIMM, "patch_size": (8, 16)},
    },
    "projector='mlp' isn't known": {"projector": "mlp"},
    "makes square images": {"vision": TINY, "image_size": (32, 64), "fit": "pad", "vision_options": TIMM},
    "can't be loaded as a causal language model": {"language": ViTConfig(**VISION)},
    "isn't a causal": {"language": T5ForConditionalGeneration(T5Config(**T5))},
    "keeps a state": {"language": MambaConfig(hidden_size=8, num_hidden_layers=1, state_size=4)},
    "pass tokenizer=": {"tokenizer": None},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_composed_is_refused(message):
    told = dict(REFUSED[message])
    vision_part = told.pop("vision", ViTConfig(**VISION))
    with pytest.raises(ConfigError, match=message):
        compose(vision_part, told.pop("language", None), **told)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(vision, "import_module", lambda name: (_ for _ in ()).throw(ImportError("no such module")))
    with pytest.raises(ConfigError, match=r'Install it: pip install "tokenflex\[custom\]"'):
        vision.required("timm")


def test_an_unknown_source_in_a_saved_model_is_refused():
    with pytest.raises(
        ConfigError, match="vision source 'magic' isn't known; use one of timm, open_clip, transformers"
    ):
        vision.rebuild_tower({"source": "magic"})


def test_weights_without_image_settings_are_refused(tmp_path):
    ViTForImageClassification(ViTConfig(**VISION)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no image processor"):
        compose(str(tmp_path), pretrained=True, language=LlamaForCausalLM(llama()))


def test_open_clip_config_is_what_the_model_was_made_of():
    assert make("open_clip").model.config.vision["vision_cfg"] == OPEN_CLIP["vision_cfg"] | {
        "timm_model_pretrained": False
    }


def own_language(vocabulary):
    """A language model that its user has changed."""
    settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **settings, pad_token_id=0, bos_token_id=1))
    model.lm_head = nn.Linear(32, vocabulary, bias=False)
    return model


def composed_with(language, **settings):
    tokenizer = tiny_tokenizer()
    vision = {"embed_dim": 48, "depth": 1, "num_heads": 4}
    return tokenflex.compose(
        "timm/vit_tiny_patch16_224", language, tokenizer=tokenizer, pretrained=False, image_size=32,
        vision_options=vision, **settings,
    )  # fmt: skip


def test_a_language_model_keeps_the_weights_it_comes_with():
    language = own_language(len(tiny_tokenizer()))
    before = {name: tensor.clone() for name, tensor in language.state_dict().items()}
    projector = nn.Sequential(nn.Linear(48, 32))
    expected = projector[0].weight.detach().clone()
    model, _ = composed_with(language, projector=projector)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.language_model.state_dict().items())
    assert torch.equal(model.multi_modal_projector[0].weight, expected)


def test_files_that_lack_tensors_are_refused(tmp_path):
    model, _ = composed_with(own_language(len(tiny_tokenizer())), projector="linear")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in state.items() if k != "multi_modal_projector.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"multi_modal_projector.bias is missing"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_layers_that_no_configuration_describes_are_refused_when_saved(tmp_path):
    class OwnLinear(nn.Linear):
        pass

    language = own_language(len(tiny_tokenizer()))
    language.model.layers[0].mlp.up_proj = OwnLinear(32, 64, bias=False)
    model, _ = composed_with(language, projector="linear")
    with pytest.raises(ConfigError, match=r"up_proj \(OwnLinear, not Linear\)"):
        model.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
