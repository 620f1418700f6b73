"""Several FlexModels over one host: each has its own settings of generation, and the host keeps its own."""

import copy

import torch
from transformers import GenerationConfig

import tokenflex
from tokenflex.testing.tiny_hosts import tiny_llava_next


def two():
    host = tiny_llava_next().eval()
    torch.manual_seed(0)
    return host, tokenflex.wrap(host).eval(), tokenflex.wrap(host).eval()


def test_settings_of_one_are_nobody_elses(left):
    host, one, other = two()
    before = copy.deepcopy(host.generation_config)
    answers = [model.generate(**left, level=0, max_new_tokens=4) for model in (one, other)]
    assert one.generation_config == other.generation_config == before
    one.generation_config.update(max_new_tokens=2, suppress_tokens=[int(answers[0][0, -1])])
    assert host.generation_config == other.generation_config == before
    assert torch.equal(other.generate(**left, level=0, max_new_tokens=4), answers[1])
    assert one.generate(**left, level=0).shape[1] == left["input_ids"].shape[1] + 2
    other.generation_config = GenerationConfig(max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert host.generation_config == before
    assert one.generation_config.max_new_tokens == 2


def test_saving_keeps_them(tmp_path):
    host, one, other = two()
    one.generation_config.max_new_tokens = 7
    for name, model in (("one", one), ("other", other)):
        model.save_pretrained(tmp_path / name)
    again = tokenflex.FlexModel.from_pretrained(tmp_path / "one")
    assert again.generation_config.max_new_tokens == 7
    assert again.host.generation_config.max_new_tokens == 7
    again.generation_config.max_new_tokens = 9
    assert again.host.generation_config.max_new_tokens == 7
    before = host.generation_config.max_new_tokens
    assert tokenflex.FlexModel.from_pretrained(tmp_path / "other").generation_config.max_new_tokens == before


def test_modes_are_the_hosts():
    """As the class says: whoever shares a host shares its mode."""
    host, one, other = two()
    one.train()
    assert host.training
    assert not other.training
    other.eval()
    assert not host.training
