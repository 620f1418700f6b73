"""A front makes the requests that the whole model makes, without the language model's layers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tokenflex
from tests.serving.test_converting import LEVELS, model
from tokenflex.errors import ConfigError
from tokenflex.serving import Front, prompt_embeds
from tokenflex.testing.tiny_hosts import tiny_llava_next_processor

HOSTS = ["llava_next", "llava", "internvl", "qwen2_vl", "qwen2_5_vl", "llava_onevision"]


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a.prompt_ids, a.compact_ids, a.counted) == (b.prompt_ids, b.compact_ids, b.counted)
        assert [(i.grid, i.key, i.decision.level) for i in a.images] == [
            (i.grid, i.key, i.decision.level) for i in b.images
        ]
        assert all(i.embeddings.equal(j.embeddings) for i, j in zip(a.images, b.images, strict=True))


@pytest.mark.parametrize("name", HOSTS)
def test_a_front_of_a_saved_model(name, tmp_path):
    flex, inputs = model(name)
    flex.save_pretrained(tmp_path)
    front = Front.from_pretrained(tmp_path)
    for choice in ({"level": LEVELS}, {}, {"budget": 0.5}):
        same(front.export(**inputs, **choice), flex.export(**inputs, **choice))
    left_out = sum(p.numel() for p in flex.host.model.language_model.layers.parameters())
    there = sum(p.numel() for p in front.flex.parameters())
    assert left_out > 0
    assert there <= sum(p.numel() for p in flex.parameters()) - left_out
    assert [d.level for d in front.decide(**inputs)] == [d.level for d in flex.decide(**inputs)]


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_a_front_of_a_host_and_parts(name, tmp_path):
    flex, inputs = model(name)
    flex.host.save_pretrained(tmp_path / "host")
    flex.save_parts(tmp_path / "parts")
    front = Front.from_pretrained(tmp_path / "host", tmp_path / "parts")
    same(front.export(**inputs, level=LEVELS), flex.export(**inputs, level=LEVELS))
    if name == "llava_next":
        request = front.export(**inputs, level=1)[0]
        assert prompt_embeds(front, request).equal(prompt_embeds(flex, request))


def test_positions_are_chosen_on_loading(tmp_path):
    flex, inputs = model("qwen2_5_vl", "span")
    flex.save_pretrained(tmp_path / "whole")
    flex.host.save_pretrained(tmp_path / "host")
    flex.save_parts(tmp_path / "parts")
    expected = model("qwen2_5_vl")[0].export(**inputs, level=0)
    same(Front.from_pretrained(tmp_path / "whole", positions="compact").export(**inputs, level=0), expected)
    other = Front.from_pretrained(tmp_path / "host", tmp_path / "parts", positions="compact")
    same(other.export(**inputs, level=0), expected)


def test_the_layers_are_never_read(tmp_path):
    flex, _ = model("llava_next")
    flex.save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    for name in tensors:
        if ".layers." in name and "language_model" in name:
            tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, path, metadata={"format": "pt"})
    assert not any(parameter.isnan().any() for parameter in Front.from_pretrained(tmp_path).flex.parameters())


@pytest.mark.parametrize("lost", ["vision_tower", "multi_modal_projector", "embed_tokens", "compressor"])
def test_missing_tensors_are_an_error(lost, tmp_path):
    flex, _ = model("llava_next")
    flex = tokenflex.wrap(flex.host)
    flex.save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    gone = next(name for name in tensors if lost in name)
    del tensors[gone]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="is missing"):
        Front.from_pretrained(tmp_path)


def test_parts_come_once(tmp_path):
    flex, _ = model("llava_next")
    flex.save_pretrained(tmp_path / "whole")
    flex.host.save_pretrained(tmp_path / "host")
    flex.save_parts(tmp_path / "parts")
    with pytest.raises(ConfigError, match="has parts of its own"):
        Front.from_pretrained(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(ConfigError, match="is a host without parts"):
        Front.from_pretrained(tmp_path / "host")


def test_an_engine_of_another_model_is_refused(tmp_path):
    flex, _ = model("llava_next")
    flex.save_pretrained(tmp_path / "whole")
    flex.host.save_pretrained(tmp_path / "host")
    front = Front.from_pretrained(tmp_path / "whole")
    front.require_engine(tmp_path / "host")
    front.require_engine(tmp_path / "whole")
    with torch.no_grad():
        flex.host.model.multi_modal_projector.linear_1.weight[0, 0] += 1
    flex.host.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"doesn't hold this front's projector: .*linear_1\.weight"):
        front.require_engine(tmp_path / "other")
    path = tmp_path / "host" / "config.json"
    told = json.loads(path.read_text())
    told["text_config"]["hidden_size"] += 8
    path.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="of width"):
        front.require_engine(tmp_path / "host")


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl"])
def test_a_front_does_not_generate(name, tmp_path):
    flex, inputs = model(name)
    flex.save_pretrained(tmp_path)
    front = Front.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a Front has no language model"):
        front.flex.generate(**inputs, max_new_tokens=1)
    with pytest.raises(ConfigError, match="a Front has no language model"):
        front.flex(**inputs)


def test_words_are_read_as_the_whole_model_reads_them(tmp_path):
    flex, _ = model("llava_next")
    flex.host.save_pretrained(tmp_path / "host")
    tiny_llava_next_processor().save_pretrained(tmp_path / "host")
    flex.save_parts(tmp_path / "parts")
    front = Front.from_pretrained(tmp_path / "host", tmp_path / "parts")
    whole = tokenflex.load_parts(tmp_path / "parts", host=flex.host)
    assert front.processor is not None
    assert front.flex.adapter.options == whole.adapter.options
