"""Engines are given smaller images as they are given fewer tokens, and fronts make the same requests."""

import pytest
import torch

import tokenflex
from tests.serving.test_converting import LEVELS, NEW, answers, model
from tests.serving.test_front import same
from tokenflex.serving import Front, prompt_embeds


def smaller(name):
    flex, inputs = model(name)
    torch.manual_seed(0)
    return tokenflex.wrap(flex.host, scaler="resolution", adapter=flex.adapter).eval(), inputs


@pytest.mark.parametrize("name", ["llava_next", "internvl"])
@torch.no_grad()
def test_the_prompt_as_embeddings_is_answered_alike(name):
    flex, inputs = smaller(name)
    for choice in ({"level": LEVELS}, {"level": 0}, {"budget": 0.4}):
        requests, expected = flex.export(**inputs, **choice), answers(flex, inputs, **choice)
        for request, want in zip(requests, expected, strict=True):
            embeds = prompt_embeds(flex, request)[None]
            barred = list(flex.adapter.placeholder_ids)
            given = flex.host.generate(
                inputs_embeds=embeds, max_new_tokens=NEW, min_new_tokens=NEW, suppress_tokens=barred
            )
            assert torch.equal(given[0], want)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_a_front_of_a_saved_model(name, tmp_path):
    flex, inputs = smaller(name)
    flex.save_pretrained(tmp_path)
    front = Front.from_pretrained(tmp_path)
    for choice in ({"level": LEVELS}, {}, {"budget": 0.5}):
        same(front.export(**inputs, **choice), flex.export(**inputs, **choice))
    assert [d.processor for d in front.decide(**inputs)] == [d.processor for d in flex.decide(**inputs)]
