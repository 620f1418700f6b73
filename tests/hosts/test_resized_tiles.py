"""Smaller images of hosts that cut images into tiles: coarser canvases, down to the whole view alone."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.hosts.processed import image
from tests.hosts.served import served
from tokenflex.contracts import Grid
from tokenflex.errors import InputError, UnsupportedHostError
from tokenflex.hosts import anyres, resized_tiles
from tokenflex.hosts.layouts import GridLayout, TiledLayout
from tokenflex.hosts.llava_next import LlavaNextAdapter
from tokenflex.hosts.resizing import Image as SmallerImage
from tokenflex.ops import pixels
from tokenflex.registry import hosts
from tokenflex.testing.host_bench import FINEST, SCALER, close
from tokenflex.testing.tiny_hosts import SIDE, tiny_llava_next, tiny_llava_next_processor
from tokenflex.testing.zoo.recipe import AN_IMAGE

TOLERANCE = 0.03


@pytest.fixture(scope="module")
def adapter():
    return LlavaNextAdapter(tiny_llava_next())


@pytest.fixture(scope="module")
def processor():
    return tiny_llava_next_processor()


def spliced(adapter, batch, shares):
    images = adapter.encode_resized(batch, shares, range(len(shares)))
    return adapter.splice(adapter.resized(batch, shares), images, [SCALER.scale(image, FINEST) for image in images])


def processed(processor, *images):
    return processor(images=[*images], text=["w1 <image> w2"] * len(images), return_tensors="pt", padding=True)


def views(batch, layout):
    """The pixels of the batch's only image, smaller."""
    return resized_tiles.views(batch, [SmallerImage(number=0, full=batch.items[0].layout, layout=layout)])[0]


@pytest.mark.parametrize("size", [(64, 64), (90, 100), (50, 60), (200, 120)])
@torch.no_grad()
def test_a_coarser_canvas_is_the_image_made_smaller(adapter, processor, size):
    full = image(*size)
    batch = adapter.read(processed(processor, full))
    assert batch.items[0].layout.tiles == Grid(2, 2)
    small = adapter.resized(batch, [0.5])
    layout = small.items[0].layout
    assert layout.tiles.tokens == 2
    expected = processed(processor, full.resize(layout.size[::-1], Image.BICUBIC))
    assert torch.equal(small.inputs["input_ids"], expected["input_ids"])
    made = views(batch, layout)
    assert made.shape == expected["pixel_values"][0].shape
    canvas = (layout.tiles.rows * SIDE, layout.tiles.cols * SIDE)
    top, left, height, width = resized_tiles._place(layout.size, canvas)
    one, other = (
        pixels.untiled(tiles[None, 1:], layout.tiles.rows)[0, :, top : top + height, left : left + width]
        for tiles in (made, expected["pixel_values"][0])
    )
    assert (one - other).abs().mean() < TOLERANCE
    inputs = {**small.inputs, "pixel_values": made[None], "image_sizes": torch.tensor([layout.size])}
    found = adapter.host(**spliced(adapter, batch, [0.5]).inputs).logits
    close(found, adapter.host(**inputs).logits, "the plain host on a coarser canvas")


@torch.no_grad()
def test_padding_is_that_of_the_full_canvas(adapter, processor):
    """A canvas that has padding passes it on: nothing of it is guessed."""
    full = image(52, 64)
    batch = adapter.read(processed(processor, full))
    assert batch.items[0].layout.tiles == Grid(2, 2)
    small = adapter.resized(batch, [0.5]).items[0].layout
    expected = processed(processor, full.resize(small.size[::-1], Image.BICUBIC))["pixel_values"][0, 1:]
    made = views(batch, small)[1:]
    assert (made - expected).abs().mean() < TOLERANCE


@torch.no_grad()
def test_the_whole_view_alone(adapter, processor):
    batch = adapter.read(processed(processor, image(64, 64), image(40, 90)))
    small = adapter.resized(batch, [0.25, 0.1])
    assert [item.layout for item in small.items] == [GridLayout(grid=Grid(8, 8), end=1)] * 2
    full, alone = adapter.encode(batch), adapter.encode_resized(batch, [0.25, 0.1], [0, 1])
    for one, whole in zip(alone, full, strict=True):
        torch.testing.assert_close(one.features, whole.features[:1])
    assert spliced(adapter, batch, [0.25, 0.1]).tokens == (65, 65)


@torch.no_grad()
def test_as_the_host_packs_a_image_of_one_view(adapter, processor):
    batch = adapter.read(processed(processor, image(64, 64)))
    made = spliced(adapter, batch, [0.1]).inputs["mm_encoder_outputs"]["image"].pooler_output
    whole = adapter.encode(batch)[0].features[:1]
    model = adapter.host.model
    expected, _ = model.pack_image_features([whole], [(64, 64)], "default", image_newline=model.image_newline)
    torch.testing.assert_close(made[0], expected[0])


@pytest.fixture(scope="module")
def config(adapter):
    return adapter.host.config


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.lists(st.floats(0.01, 1), min_size=2, max_size=6))
@example(65, 1, [1.0, 0.9999999999999999])
def test_sizes_ascend_with_their_share(config, height, width, shares):
    tiles = anyres.local_tiles(config, (height, width))
    full = TiledLayout(grid=Grid(8, 8), tiles=tiles, size=(height, width))
    found = [resized_tiles.smaller(config, full, share) for share in sorted([*shares, 1.0])]
    counts = [one.tiles.tokens if isinstance(one, TiledLayout) else 0 for one in found]
    assert counts == sorted(counts)
    for share, one in zip(sorted([*shares, 1.0]), found, strict=True):
        if isinstance(one, TiledLayout):
            assert one.tiles.tokens <= share * tiles.tokens + 1e-3
            assert anyres.local_tiles(config, one.size) == one.tiles
            assert one.placeholders <= full.placeholders


@torch.no_grad()
def test_videos_and_company_keep_their_size():
    tiny = served("llava_onevision")
    adapter = hosts.get("llava_onevision")(tiny.build())
    batch = adapter.read(tiny.batch(adapter.host.config, ((1, AN_IMAGE, 2, AN_IMAGE, 3), (4, AN_IMAGE, 5))))
    small = adapter.resized(batch, [0.1] * 3)
    assert [one.layout for one in small.items[:2]] == [one.layout for one in batch.items[:2]]
    assert small.items[2].layout != batch.items[2].layout
    tiny = served("llava_next_video")
    adapter = hosts.get("llava_next_video")(tiny.build())
    batch = adapter.read(tiny.batch(adapter.host.config, ((1, "video", 2), (3, AN_IMAGE, 4, "video"))))
    images, full = adapter.encode_resized(batch, [0.1] * 3, [1, 2]), adapter.encode(batch)
    for one, other in zip(images, full[1:], strict=True):
        torch.testing.assert_close(one.features, other.features)


def test_wrong_shares_and_numbers_are_refused(adapter, processor):
    batch = adapter.read(processed(processor, image(64, 64), image(40, 90)))
    for shares, told in (([0.5], "1 shares for a batch of 2"), ([0.5, 0.0], "share 0.0"), ([1.5, 0.5], "share 1.5")):
        with pytest.raises(InputError, match=told):
            adapter.resized(batch, shares)
        with pytest.raises(InputError, match=told):
            adapter.encode_resized(batch, shares, [0])
    for numbers in ([2], [1, 0], [0, 0], [-1]):
        with pytest.raises(InputError, match="ascending"):
            adapter.encode_resized(batch, [0.5, 0.5], numbers)


def test_hosts_that_cannot_say_so():
    tiny = served("granite4_vision")
    adapter = hosts.get("granite4_vision")(tiny.build())
    batch = adapter.read(tiny.batch(adapter.host.config, ((1, AN_IMAGE, 2),)))
    with pytest.raises(UnsupportedHostError, match="several layers"):
        adapter.resized(batch, [0.5])
    tiny = served("idefics3")
    adapter = hosts.get("idefics3")(tiny.build())
    batch = adapter.read(tiny.batch(adapter.host.config, ((1, AN_IMAGE, 2),)))
    with pytest.raises(UnsupportedHostError, match="text around every tile"):
        adapter.resized(batch, [0.5] * len(batch.spans))
    assert adapter.processor_kwargs(batch, 0, 4) == {}


def test_tiles_routed_one_by_one_keep_their_size():
    tiny = served("internvl")
    adapter = hosts.get("internvl")(tiny.build(), route_per="tile")
    assert "one by one" in str(adapter.resize_refusal)
