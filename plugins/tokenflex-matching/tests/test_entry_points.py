"""The names this distribution offers, and a host that uses them."""

import numpy as np
import pytest
import torch
from PIL import Image

import tokenflex
from tokenflex import routers, scalers
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor

SCALERS = ("tome", "visionzip", "prumerge", "prumerge-plus", "density-peaks")
ROUTERS = ("redundancy", "outliers")


@pytest.mark.parametrize(
    ("registry", "name"), [*((scalers, name) for name in SCALERS), *((routers, name) for name in ROUTERS)]
)
def test_registered(registry, name):
    assert registry.provider(name).distribution == "tokenflex-matching"
    assert registry.get(name).__module__.startswith("tokenflex_matching.")


@pytest.mark.parametrize("scaler", SCALERS)
def test_on_a_host(scaler):
    host, processor = tiny_llava_next(), tiny_llava_next_processor()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    inputs = processor(images=Image.fromarray(pixels), text="user : <image> w1 assistant :", return_tensors="pt")
    for router in ROUTERS:
        flex = tokenflex.wrap(host, scaler=scaler, router=router, voter="mean", policy="argmax")
        with torch.no_grad():
            coarse, fine = (flex.decide(**inputs, level=level)[0].tokens for level in (0, 4))
            assert coarse < fine
            (decision,) = flex.decide(**inputs)
            assert decision.scores is not None
            assert flex.generate(**inputs, max_new_tokens=1).shape[0] == 1
            assert flex(**inputs, level=0).logits.isfinite().all()
