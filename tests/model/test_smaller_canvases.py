"""Hosts of tiles: a level is a smaller canvas, down to the view of the whole image alone."""

import pytest
import torch

from tests.model.smaller import assembled, batch_of
from tokenflex.testing.host_bench import labels_of

HOSTS = ("llava_next", "llava_onevision", "internvl")
TOKENS = {"max_new_tokens": 4, "min_new_tokens": 4}


@pytest.fixture(scope="module", params=HOSTS)
def flex(request):
    return assembled(request.param)


def mixed(flex, inputs):
    """(the encoded batch, unlike levels for its images)."""
    encoded = flex.encode(inputs)
    return encoded, [(0, 4, 3)[i % 3] for i in range(len(encoded.counts))]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_the_finest_level_is_the_untouched_host(flex, side):
    inputs = batch_of(flex, side=side)
    assert torch.equal(flex(**inputs, level=-1).logits, flex.host(**inputs).logits)
    asked = {**batch_of(flex), **TOKENS}
    assert torch.equal(flex.generate(**asked, level=-1), flex.host.generate(**asked))


def test_counts_and_places(flex):
    inputs = batch_of(flex)
    encoded, levels = mixed(flex, inputs)
    spliced = flex.at_levels(inputs, encoded, levels)
    assert list(spliced.tokens) == encoded.counts[range(len(levels)), levels].tolist()
    there = spliced.index >= 0
    ids = inputs["input_ids"].gather(1, spliced.index.clamp(min=0))
    assert torch.equal(ids[there], spliced.inputs["input_ids"][there])
    assert bool((encoded.counts.diff(dim=-1) >= 0).all())
    assert bool((encoded.counts[:, 0] < encoded.counts[:, -1]).any())


@torch.no_grad()
def test_rows_in_groups_give_what_padded_rows_give(flex):
    inputs = batch_of(flex)
    _, levels = mixed(flex, inputs)
    outputs, losses = [], []
    for way in ("padded", "grouped"):
        flex.batching = way
        outputs.append(flex.generate(**inputs, level=levels, **TOKENS))
        losses.append(flex(**inputs, labels=labels_of(inputs), level=levels).loss)
    flex.batching = "auto"
    assert torch.equal(*outputs)
    torch.testing.assert_close(*losses)


@torch.no_grad()
def test_routed_images_that_stay_coarse_keep_what_was_looked_at(flex):
    inputs = batch_of(flex)
    encoded = flex.encode(inputs)
    coarse = flex.at_levels(inputs, encoded, [0] * len(encoded.images))
    forced = flex.at_levels(inputs, flex.encode(inputs, look=False), [0] * len(encoded.images))
    for one, other in zip(flattened(coarse), flattened(forced), strict=True):
        torch.testing.assert_close(one, other)
    assert all(known is image for known, image in zip(encoded.made["resized"].values(), encoded.images, strict=True))


def flattened(spliced):
    entries = spliced.inputs["mm_encoder_outputs"]["image"]["pooler_output"]
    return entries if isinstance(entries, list | tuple) else [entries]
