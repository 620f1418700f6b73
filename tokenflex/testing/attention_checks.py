"""The law of adapters that read the vision tower."""

import torch

from tokenflex.contracts import VisualTokens
from tokenflex.testing.bench import Skip
from tokenflex.testing.host_bench import ROWS, HostBench, close
from tokenflex.testing.zoo.recipe import AN_IMAGE


def attention_belongs_to_the_image(bench: HostBench) -> None:
    """Asking for it changes no feature; it is one weight per token, the same alone and in a batch; so are keys."""
    refusal = bench.adapter.attention_refusal
    if refusal:
        raise Skip(refusal)
    inputs = bench.batch()
    images = bench.adapter.encode(bench.adapter.read(inputs), attention=True)
    for image, plain in zip(images, bench.adapter.encode(bench.adapter.read(inputs)), strict=True):
        close(image.features, plain.features, "features with and without attention")
        weights, keys = _read(image)
        places = tuple(image.features.shape[:-1])
        assert tuple(weights.shape) == places, f"attention has shape {tuple(weights.shape)}, the tokens {places}"
        assert tuple(keys.shape[:-1]) == places, f"keys have shape {tuple(keys.shape)}, the tokens {places}"
        assert bool((weights.isfinite() & (weights >= 0)).all()), "attention is negative, infinite or NaN"
    first = next(row for row in ROWS if AN_IMAGE in row)
    for image, alone in zip(
        images, bench.adapter.encode(bench.adapter.read(bench.batch((first,))), attention=True), strict=False
    ):
        for in_batch, single in zip(_read(image), _read(alone), strict=True):
            close(in_batch, single, "attention or keys in a batch and alone")


def _read(image: VisualTokens) -> tuple[torch.Tensor, torch.Tensor]:
    assert image.attention is not None, "attention was asked for and is missing"
    assert image.keys is not None, "keys belong to attention and are missing"
    return image.attention, image.keys
