"""Parts of this distribution on a tiny host."""

import pytest
import torch
from PIL import Image

import tokenflex
from tokenflex import scalers
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor

OURS = [name for name in scalers.names() if scalers.provider(name).distribution == "tokenflex-selection"]


@pytest.fixture(scope="module")
def host():
    return tiny_llava_next()


@pytest.fixture(scope="module")
def inputs():
    noise = torch.randint(0, 256, (40, 50, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy())
    text = ["user : <image> w1 w2 assistant :", "user : <image> w3 assistant :"]
    return tiny_llava_next_processor()(images=[image, image], text=text, return_tensors="pt", padding=True)


@pytest.mark.parametrize("router", ["effective-rank", "mutual-information"])
@pytest.mark.parametrize("name", OURS)
def test_chooses_and_answers(host, inputs, name, router):
    flex = tokenflex.wrap(host, scaler=name, router=router, voter="mean", policy="argmax")
    decisions = flex.decide(**inputs)
    assert len(decisions) == 2
    assert all(0 <= decision.level < 5 for decision in decisions)
    answer = flex.generate(**inputs, level=0, max_new_tokens=2, do_sample=False)
    assert answer.shape[0] == 2
