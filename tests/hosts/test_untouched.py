"""A host is bit for bit what it was, whatever was done to it before it got its parts."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import AutoModelForImageTextToText

import tokenflex
from tests.hosts.served import served
from tests.hosts.snapshots import require_same, snapshot
from tokenflex.tables import hosts as hosts_table
from tokenflex.testing.host_bench import ROWS
from tokenflex.testing.tiny_hosts import tiny_llava_next

SERVED = [name for name in hosts_table.architectures() if hosts_table.refusal(name) is None]


class OwnLinear(nn.Linear):
    """As people swap layers in."""


def lora(host, **settings):
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **settings)
    return get_peft_model(host, config)


def added(host):
    return inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), host)


def own_head(host):
    host.lm_head = nn.Linear(host.lm_head.in_features, host.lm_head.out_features, bias=False)
    return host


def own_projector(host):
    layer = host.model.multi_modal_projector.linear_2
    host.model.multi_modal_projector.linear_2 = OwnLinear(layer.in_features, layer.out_features)
    return host


def own_layer(host):
    layer = host.model.language_model.layers[0].mlp
    layer.up_proj = OwnLinear(layer.up_proj.in_features, layer.up_proj.out_features, bias=False)
    return host


def own_mode(host):
    host.train()
    host.model.vision_tower.eval()
    host.model.vision_tower.requires_grad_(False)
    return host


HOSTS = {
    "plain": lambda host: host,
    "lora": lora,
    "dora": lambda host: lora(host, use_dora=True),
    "head saved by peft": lambda host: lora(host, modules_to_save=["lm_head"]),
    "added adapter": added,
    "own head": own_head,
    "own projector": own_projector,
    "own layer": own_layer,
    "own mode": own_mode,
}


def use(flex, inputs):
    """Decide, answer, and train the parts for a step."""
    with torch.no_grad():
        if not flex.host.training:
            flex.decide(**inputs)
            flex.generate(**inputs, max_new_tokens=2)
    scores = flex.scores(flex.encode(inputs))
    scores.square().sum().backward()
    torch.optim.SGD([p for p in flex.compressor.parameters() if p.grad is not None], lr=0.1).step()


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_hosts_people_have_changed_stay_as_they_are(name, tied, left, tmp_path):
    host = HOSTS[name](tiny_llava_next(tie_word_embeddings=tied))
    with torch.no_grad():
        host(**left)  # transformers installs its own recording hooks on first use
    before = snapshot(host)
    flex = tokenflex.wrap(host)
    require_same(before, snapshot(host))
    use(flex, left)
    require_same(before, snapshot(host))
    flex.save_parts(tmp_path)
    use(tokenflex.load_parts(tmp_path, host=host), left)
    require_same(before, snapshot(host))


@pytest.mark.parametrize("name", SERVED)
def test_every_host_stays_as_it_is(name, tmp_path):
    tiny = served(name)
    host = tiny.build()
    inputs = tiny.batch(host.config, ROWS)
    with torch.no_grad():
        host(**inputs)
        host.generate(**inputs, max_new_tokens=2)
    for module in host.modules():
        module.__dict__.pop("_is_hf_initialized", None)  # as on modules that people put in themselves
    before = snapshot(host)
    torch.manual_seed(0)
    flex = tokenflex.wrap(host)
    require_same(before, snapshot(host))
    use(flex, inputs)
    flex.save_parts(tmp_path)
    tokenflex.load_parts(tmp_path, host=host)
    require_same(before, snapshot(host))


def test_answers_with_trained_adapters_are_the_wrapped_hosts(left):
    host = lora(tiny_llava_next()).eval()
    twin = copy.deepcopy(host)
    flex = tokenflex.wrap(host)
    with torch.no_grad():
        assert torch.equal(flex(**left, level="finest").logits, twin(**left).logits)


def test_quantised_hosts_stay_as_they_are(left, tmp_path):
    pytest.importorskip("bitsandbytes", reason="comes with the extra [test]")
    from transformers import BitsAndBytesConfig

    tiny_llava_next().save_pretrained(tmp_path / "host")
    settings = BitsAndBytesConfig(load_in_8bit=True)
    host = AutoModelForImageTextToText.from_pretrained(tmp_path / "host", quantization_config=settings)
    with torch.no_grad():
        host(**left)
    before = snapshot(host)
    use(tokenflex.wrap(host), left)
    require_same(before, snapshot(host))
