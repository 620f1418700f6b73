"""Hosts as people fine-tune and load them: adapters on the language model, weights placed by a device map."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

import tokenflex
from tests.hosts.served import served
from tokenflex.testing.host_bench import ROWS
from tokenflex.training import STAGES, MultiGranularityObjective
from tokenflex.training.stages import select

HOSTS = ["internvl", "qwen2_5_vl", "qwen3_vl", "mistral3"]


def labelled(tiny, config):
    inputs = tiny.batch(config, ROWS, side="right")
    ids = inputs["input_ids"]
    return {**inputs, "labels": ids.masked_fill((ids < 17) | (inputs["attention_mask"] == 0), -100)}


@pytest.mark.parametrize("name", HOSTS)
def test_lora_on_the_language_model_trains_together_with_stage_three(name, tmp_path):
    tiny = served(name)
    torch.manual_seed(0)
    host = tiny.build()
    targets = r".*language_model.*\.(q_proj|v_proj)"
    lora = get_peft_model(host, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    flex = tokenflex.wrap(lora, router="constant", voter="mean")
    batch = labelled(tiny, host.config)
    with torch.no_grad():
        assert torch.equal(flex(**batch, level=4).logits, lora(**batch).logits)
    groups = select(flex, STAGES[3].with_rates(vision_tower=0.0, projector=0.0))
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for n, p in lora.named_parameters() if "lora_" in n}
    flex.train()
    flex(**batch, objective=MultiGranularityObjective()).loss.backward()
    for name_, parameter in lora.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == ("lora_" in name_), name_


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_loaded_with_a_device_map(name, tmp_path):
    tiny = served(name)
    tiny.build().save_pretrained(tmp_path / "host")
    host = AutoModelForImageTextToText.from_pretrained(tmp_path / "host", device_map={"": "cpu"})
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "host")
    torch.manual_seed(0)
    flex = tokenflex.wrap(host, router="avg", voter="position-weighted")
    inputs = tiny.batch(host.config, ROWS)
    assert torch.equal(flex(**inputs, level=4).logits, plain(**inputs).logits)
    flex.save_pretrained(tmp_path / "whole")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole").eval()
    assert torch.equal(again(**inputs, level=[0, 1, 2]).logits, flex(**inputs, level=[0, 1, 2]).logits)
