"""Smaller images on hosts as people load them: half precision, adapters of PEFT, positions of their own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

import tokenflex
from tests.hosts.served import served
from tokenflex.contracts import Grid
from tokenflex.contracts.scaler import shrunk
from tokenflex.errors import InputError
from tokenflex.hosts.layouts import GridLayout
from tokenflex.hosts.resized_patches import BY_ROW, BY_TOKEN, CHANNELS_FIRST, CHANNELS_LAST, amid
from tokenflex.ops import pixels
from tokenflex.registry import hosts
from tokenflex.testing.host_bench import ROWS, HostBench
from tokenflex.testing.resize_checks import shares_for, spliced

KINDS = ("qwen2_vl", "llava_next", "mistral3", "internvl", "llava", "gemma4")
sides = st.integers(1, 12)
shares = st.floats(0.001, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_half_precision(name, dtype):
    tiny = served(name)
    adapter = hosts.get(name)(tiny.build().to(dtype))
    inputs = tiny.batch(adapter.host.config, ROWS)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    batch = adapter.read(inputs)
    images = adapter.encode_resized(batch, shares_for(batch), range(len(batch.spans)))
    assert {image.features.dtype for image in images} == {dtype}
    assert all(image.features.isfinite().all() for image in images)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "gemma4"])
@torch.no_grad()
def test_hosts_inside_peft(name):
    tiny = served(name)
    plain, host = tiny.build(), tiny.build()
    wrapped = get_peft_model(host, LoraConfig(r=2, target_modules=["q_proj"]))
    found = []
    for one in (plain, wrapped):
        adapter = tokenflex.wrap(one, router="constant", voter="mean").adapter
        batch = adapter.read(tiny.batch(plain.config, ROWS))
        made = spliced(HostBench(adapter, tiny), batch, shares_for(batch))
        found.append(adapter.host(**made.inputs).logits)
    torch.testing.assert_close(found[1], found[0])  # fresh LoRA weights add nothing


def test_positions_of_the_callers_own():
    tiny = served("qwen2_vl")
    adapter = hosts.get("qwen2_vl")(tiny.build())
    inputs = tiny.batch(adapter.host.config, ((1, "image", 2),))
    length = inputs["input_ids"].shape[1]
    batch = adapter.read({**inputs, "position_ids": torch.arange(length).expand(3, 1, -1)})
    with pytest.raises(InputError, match="caller's own"):
        adapter.resized(batch, [0.5])
    assert adapter.resized(batch, [1.0]) is batch


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "glm4v"])
@torch.no_grad()
def test_positions_are_the_smaller_images(name):
    """As the host computes them from the smaller grid, whether left to it or spanned."""
    tiny = served(name)
    adapter = hosts.get(name)(tiny.build())
    batch = adapter.read(tiny.batch(adapter.host.config, ROWS))
    small = adapter.resized(batch, shares_for(batch))
    made = spliced(HostBench(adapter, tiny), batch, shares_for(batch))
    assert torch.equal(adapter.position_ids(made.inputs), adapter.position_ids({**small.inputs}))
    assert (small.inputs["image_grid_thw"].prod(-1) < batch.inputs["image_grid_thw"].prod(-1))[:2].all()


@given(sides, sides, shares, shares)
def test_sides_are_rounded_down(rows, cols, one, other):
    full, low, high = Grid(rows, cols), *(shrunk(Grid(rows, cols), share) for share in sorted((one, other)))
    assert 1 <= low.rows <= high.rows <= rows
    assert 1 <= low.cols <= high.cols <= cols
    assert shrunk(full, 1.0) == full
    assert low.tokens <= max(min(one, other) * full.tokens * 1.01, max(low.rows, low.cols))


@given(sides, sides, shares)
def test_a_level_is_amid_its_shares(rows, cols, share):
    full = GridLayout(grid=Grid(rows, cols))
    wanted = shrunk(full.grid, share).tokens
    assert shrunk(full.grid, min(amid(full, wanted), 1.0)).tokens == wanted
    assert shrunk(full.grid, min(amid(full, 0), 1.0)).tokens == shrunk(full.grid, 1e-9).tokens


@given(st.sampled_from([BY_TOKEN, BY_ROW]), st.sampled_from([CHANNELS_FIRST, CHANNELS_LAST]), st.data())
def test_patches_are_put_together_and_cut_again(order, numbers, data):
    time, height, width, merge, patch, frames = (data.draw(st.integers(1, 3)) for _ in range(6))
    made = torch.randn(2, time * height * width * merge**2, 3 * frames * patch**2)
    grid, pattern = (time, height * merge, width * merge), f"{order} {numbers}"
    whole = pixels.unpatched(made, pattern, grid=grid, merge=(merge, merge), patch=patch)
    assert whole.shape == (2, time * frames, 3, height * merge * patch, width * merge * patch)
    assert torch.equal(pixels.patched(whole, pattern, time=time, merge=(merge, merge), patch=patch), made)


def test_resampling_keeps_what_has_its_size():
    image = torch.randn(1, 3, 4, 6)
    assert pixels.resampled(image, (4, 6)) is image
    flat = torch.full((1, 3, 8, 8), 0.5, dtype=torch.bfloat16)
    small = pixels.resampled(flat, (3, 5))
    assert (small.dtype, tuple(small.shape)) == (torch.bfloat16, (1, 3, 3, 5))
    torch.testing.assert_close(small, torch.full_like(small, 0.5))
