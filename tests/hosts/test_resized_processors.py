"""Smaller images are what transformers' own processors make of smaller images: text exactly, pixels nearly."""

import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image

from tests.hosts.processed import PROCESSORS, batch, image
from tests.hosts.served import served
from tokenflex.contracts import Grid
from tokenflex.hosts.resized_canvas import arrangement, nearest
from tokenflex.registry import hosts
from tokenflex.testing.host_bench import FINEST, SCALER, close

TILED = ("internvl", "qianfan_ocr", "got_ocr2")
SIZED = [name for name in PROCESSORS if name not in TILED]
TOLERANCE = 0.02
"""Mean difference of normalised pixels: a processor rounds to 256 shades before it normalises."""
IMAGES = ((64, 96), (48, 48))
SHARES = (0.25, 0.5)


def opened(name):
    tiny = served(name)
    host = tiny.build()
    return tiny, hosts.get(name)(host)


def encoder_inputs(adapter, batch, shares):
    """What the encoder is given for all images of the batch, in one call."""
    (call,) = adapter._resizing.calls(
        adapter.host.config, adapter.architecture.modalities[0], batch, adapter._images(batch, shares)
    )
    return call.inputs


def spliced(adapter, batch, shares):
    images = adapter.encode_resized(batch, shares, range(len(shares)))
    return adapter.splice(adapter.resized(batch, shares), images, [SCALER.scale(image, FINEST) for image in images])


@pytest.mark.parametrize("name", SIZED)
@torch.no_grad()
def test_a_level_is_the_image_made_smaller(name):
    tiny, adapter = opened(name)
    processor = PROCESSORS[name](adapter.host.config)
    full = [image(*size, seed) for seed, size in enumerate(IMAGES)]
    read = adapter.read(batch(tiny, adapter, processor, full))
    small = adapter.resized(read, SHARES)
    cell = IMAGES[0][0] // read.grids[0].rows
    made = [one.resize((g.cols * cell, g.rows * cell), Image.BICUBIC) for one, g in zip(full, small.grids, strict=True)]
    expected = batch(tiny, adapter, processor, made)
    for key in {"input_ids", "attention_mask", tiny.token_types, *small.cpu} - {None}:
        assert torch.equal(small.inputs[key], expected[key]), key
    given = encoder_inputs(adapter, read, SHARES)
    assert given["pixel_values"].shape == expected["pixel_values"].shape
    assert (given["pixel_values"] - expected["pixel_values"]).abs().mean() < TOLERANCE
    found = adapter.host(**spliced(adapter, read, SHARES).inputs).logits
    close(found, adapter.host(**{**expected, **given}).logits, "the plain host on smaller images")


@pytest.mark.parametrize("name", SIZED)
def test_settings_give_the_processor_a_level(name):
    """For every size of an image that fills its grid, and for one that was rounded to it."""
    tiny, adapter = opened(name)
    processor = PROCESSORS[name](adapter.host.config)
    for size in (IMAGES[0], (IMAGES[0][0] + 1, IMAGES[0][1] - 1)):
        read = adapter.read(batch(tiny, adapter, processor, [image(*size)]))
        for share in (1 / 16, 1 / 4, 1 / 2):
            wanted = adapter.resized(read, [share]).items[0].layout.placeholders
            told = adapter.processor_kwargs(read, 0, wanted)
            tokens = adapter.read(batch(tiny, adapter, processor, [image(*size)], **told)).items[0].layout.placeholders
            by_edge = "shortest_edge" not in told["size"]  # which rounds the other side up
            assert tokens == wanted if size == IMAGES[0] and not by_edge else abs(tokens - wanted) <= 0.5 * wanted + 1


@pytest.mark.parametrize("share", [1 / 9, 0.4, 0.5, 0.75])
@pytest.mark.parametrize("size", [(64, 96), (48, 48), (32, 128), (96, 32)])
@pytest.mark.parametrize("name", TILED)
@torch.no_grad()
def test_a_level_of_tiles_is_what_fewer_tiles_give(name, size, share):
    tiny, adapter = opened(name)
    processor, seen = PROCESSORS[name](adapter.host.config), [image(*size)]
    read = adapter.read(batch(tiny, adapter, processor, seen))
    most = max(int(share * (read.items[0].layout.views - 1)), 1)
    expected = batch(tiny, adapter, processor, seen, max_patches=most)
    small = adapter.resized(read, [share])
    assert torch.equal(small.inputs["input_ids"], expected["input_ids"])
    given = encoder_inputs(adapter, read, [share])
    assert given["pixel_values"].shape == expected["pixel_values"].shape
    assert (given["pixel_values"] - expected["pixel_values"]).abs().mean() < 3 * TOLERANCE
    tokens = small.items[0].layout.placeholders
    told = adapter.processor_kwargs(read, 0, tokens)
    again = batch(tiny, adapter, processor, seen, **told)
    assert adapter.read(again).items[0].layout.placeholders == tokens


def test_canvases_are_the_processors():
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    for rows in range(1, 7):
        for cols in range(1, 7):
            for most in range(1, 13):
                width, height = get_optimal_tiled_canvas((rows * 8, cols * 8), (8, 8), 1, most)
                assert nearest(Grid(rows, cols), most) == Grid(height, width)


def test_arrangements_are_seen():
    for rows, cols in ((1, 6), (2, 3), (3, 2), (6, 1), (2, 2), (1, 4), (1, 1)):
        processor = transformers.GotOcr2ImageProcessor(
            size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=rows * cols, max_patches=rows * cols
        )
        tiles = processor([image(rows * 40, cols * 40)], return_tensors="pt")["pixel_values"]
        tiles = tiles if len(tiles) > 1 else tiles.repeat(2, 1, 1, 1)
        assert arrangement(tiles) == Grid(rows, cols)


@pytest.mark.parametrize("name", ["gemma4", "gemma4_unified"])
@torch.no_grad()
def test_gemma4_levels_are_its_budgets(name):
    tiny, adapter = opened(name)
    vision = adapter.host.config.vision_config
    kind = transformers.Gemma4ImageProcessor if name == "gemma4" else transformers.Gemma4UnifiedImageProcessor
    processor = kind(patch_size=vision.patch_size, pooling_kernel_size=vision.pooling_kernel_size)
    seen = [image(50, 50), image(60, 40)]
    read = adapter.read(batch(tiny, adapter, processor, seen, max_soft_tokens=280))
    expected = batch(tiny, adapter, processor, seen, max_soft_tokens=70)
    small = adapter.resized(read, [0.25, 0.25])
    assert torch.equal(small.inputs["input_ids"], expected["input_ids"])
    given = encoder_inputs(adapter, read, [0.25, 0.25])
    count = min(given["pixel_values"].shape[1], expected["pixel_values"].shape[1])
    off = given["pixel_values"][:, :count] - expected["pixel_values"][:, :count]
    assert off.abs().mean() < TOLERANCE
    assert torch.equal(given["image_position_ids"][:, :count], expected["image_position_ids"][:, :count])
    found = adapter.host(**spliced(adapter, read, [0.25, 0.25]).inputs).logits
    close(found, adapter.host(**{**expected, **given}).logits, "the plain host on smaller images")
    told = [adapter.processor_kwargs(read, i, small.items[i].layout.placeholders) for i in range(2)]
    assert told == [{"max_soft_tokens": 70}] * 2
    assert adapter.processor_kwargs(read, 0, 1) == {"max_soft_tokens": 70}
    assert adapter.processor_kwargs(read, 0, 130) == {"max_soft_tokens": 140}
    assert adapter.processor_kwargs(read, 0, 10**6) == {"max_soft_tokens": 1120}


@torch.no_grad()
def test_nemotron_levels():
    tiny, adapter = opened("nemotron_h_omni")
    from transformers.models.nemotron_h_omni import NemotronH_Omni_Reasoning_V3ImageProcessor as Processor

    vision = adapter.host.config.vision_config
    processor = Processor(patch_size=vision.patch_size, min_num_patches=4, max_num_patches=4096)
    full = image(32, 48)
    read = adapter.read(batch(tiny, adapter, processor, [full]))
    grid = adapter.resized(read, [0.25]).grids[0]
    side = 32 // read.grids[0].rows
    expected = batch(tiny, adapter, processor, [full.resize((grid.cols * side, grid.rows * side), Image.BICUBIC)])
    given = encoder_inputs(adapter, read, [0.25])
    assert given["pixel_values"].shape == expected["pixel_values"].shape
    assert (given["pixel_values"] - expected["pixel_values"]).abs().mean() < TOLERANCE


@pytest.mark.parametrize("name", ["llava", "vipllava", "video_llava", "paligemma", "janus", "deepseek_vl"])
@torch.no_grad()
def test_squares_are_seen_with_interpolated_positions(name):
    tiny, adapter = opened(name)
    inputs = tiny.batch(adapter.host.config, ((1, "image", 2), (3, "image", 4, 5)))
    read = adapter.read(inputs)
    small = adapter.resized(read, [0.25, 0.25])
    given = encoder_inputs(adapter, read, [0.25, 0.25])
    assert given["interpolate_pos_encoding"] is True
    assert given["pixel_values"].shape[-1] == inputs["pixel_values"].shape[-1] // 2
    expected = adapter.host.base_model.get_image_features(**given).pooler_output
    images = adapter.encode_resized(read, [0.25, 0.25], [0, 1])
    torch.testing.assert_close(torch.cat([one.features for one in images]), torch.stack(list(expected)))
    if name == "llava" and Version(transformers.__version__) >= Version("5.24"):  # its forward hands the setting on
        found = adapter.host(**spliced(adapter, read, [0.25, 0.25]).inputs).logits
        close(found, adapter.host(**{**small.inputs, **given}).logits, "the plain host on smaller images")
