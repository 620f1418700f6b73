"""M-RoPE positions of shortened images: ``span`` by hand, ``compact`` against a smaller image."""

import pytest
import torch

import tokenflex
from tests.hosts.served import served
from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError
from tokenflex.hosts.grid import GridAdapter
from tokenflex.hosts.positions import full_positions
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.scalers.stride import StrideScaler
from tokenflex.testing.zoo.recipe import AN_IMAGE, IMAGE

ROTARY = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "paddleocr_vl", "ernie4_5_vl_moe", "cosmos3_edge"]
HALVES = ((2, 2), (1, 1))


def prepared(name, rows, positions, level=0, scaler=None):
    tiny = served(name)
    host = tiny.build()
    scaler = scaler or AveragePoolScaler.Config(windows=HALVES)
    flex = tokenflex.wrap(
        host, scaler=scaler, router="constant", voter="mean", adapter=GridAdapter(host, positions=positions)
    )
    inputs = tiny.batch(host.config, rows)
    return flex, inputs, flex.prepare(inputs, level)[0].inputs


@pytest.mark.parametrize("name", ROTARY)
def test_span_keeps_the_place_of_every_word_and_centres_every_token(name):
    flex, inputs, short = prepared(name, ((1, 2, AN_IMAGE, 3, 4),), "span")
    full = full_positions(flex.host, inputs)[-3:, 0].float()
    found = short["position_ids"][-3:, 0].float()
    ids = inputs["input_ids"][0]
    assert torch.equal(found[:, short["input_ids"][0] != IMAGE], full[:, ids != IMAGE])
    pictured = full[:, ids == IMAGE].view(3, 4, 4)
    cells = pictured.unflatten(2, (2, 2)).unflatten(1, (2, 2)).mean((2, 4)).flatten(1)
    assert torch.equal(found[:, short["input_ids"][0] == IMAGE], cells)


@pytest.mark.parametrize("name", ROTARY)
@torch.no_grad()
def test_compact_is_what_the_host_does_with_a_image_of_the_kept_grid(name):
    flex, inputs, short = prepared(name, ((1, 2, AN_IMAGE, 3, 4),), "compact")
    assert "position_ids" not in short
    (image,) = flex.adapter.encode(flex.adapter.read(inputs))
    assert image.grid == Grid(4, 4)
    merge = int(inputs["image_grid_thw"][0, 1]) // 4
    # The same prompt with four placeholders, written by hand.
    ids = inputs["input_ids"][0].tolist()
    first = ids.index(IMAGE)
    at = [*range(first), *range(first, first + 4), *range(first + 16, len(ids))]
    smaller = {key: value[:, at] for key, value in inputs.items() if key not in ("pixel_values", "image_grid_thw")}
    smaller["image_grid_thw"] = torch.tensor([[1, 2 * merge, 2 * merge]])
    expected = flex.host(**smaller, mm_encoder_outputs=short["mm_encoder_outputs"]).logits
    assert torch.equal(flex(**inputs, level=0).logits, expected)
    new = flex.generate(**inputs, level=0, max_new_tokens=4)[:, -4:]
    again = prepared(name, ((1, 2, AN_IMAGE, 3, 4),), "compact")[2]["mm_encoder_outputs"]
    assert torch.equal(new, flex.host.generate(**smaller, mm_encoder_outputs=again, max_new_tokens=4)[:, -4:])


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
@torch.no_grad()
def test_span_and_compact_differ_when_shortened_and_agree_with_the_host_when_not(name):
    rows = ((1, AN_IMAGE, 3), (AN_IMAGE, 5, AN_IMAGE))
    logits = {}
    for positions in ("span", "compact"):
        flex, inputs, _ = prepared(name, rows, positions)
        logits[positions] = flex(**inputs, level=0).logits
        assert torch.equal(flex(**inputs, level=1).logits, flex.host(**inputs).logits)
        mixed = flex(**inputs, level=[1, 0, 1]).logits
        assert mixed.isfinite().all()
    assert not torch.allclose(logits["span"], logits["compact"])


def test_kept_tokens_keep_their_own_place_when_others_are_dropped():
    flex, inputs, short = prepared("qwen2_vl", ((1, AN_IMAGE, 2),), "span", scaler=StrideScaler.Config())
    full = full_positions(flex.host, inputs)
    pictured = full[:, 0, inputs["input_ids"][0] == IMAGE].T.tolist()
    kept = short["position_ids"][-3:, 0, short["input_ids"][0] == IMAGE].T.tolist()
    assert len(kept) < len(pictured)
    assert all(place in pictured for place in kept)


def test_token_types_are_made_where_they_are_missing():
    flex, inputs, short = prepared("qwen2_5_vl", ((1, AN_IMAGE, 2),), "span")
    without = {key: value for key, value in inputs.items() if key != "mm_token_type_ids"}
    found = flex.prepare(without, 0)[0].inputs
    assert torch.equal(found["position_ids"], short["position_ids"])


def test_the_callers_own_positions_are_moved_along():
    flex, inputs, short = prepared("qwen2_vl", ((1, AN_IMAGE, 2),), "span")
    own = full_positions(flex.host, inputs) + 7
    found = flex.prepare({**inputs, "position_ids": own}, 0)[0].inputs
    assert torch.equal(found["position_ids"], short["position_ids"] + 7)


def test_compact_needs_a_grid():
    with pytest.raises(ConfigError, match="form a grid"):
        prepared("qwen2_vl", ((1, AN_IMAGE, 2),), "compact", scaler="random")


def test_bad_options_are_refused():
    host = served("qwen2_vl").build()
    with pytest.raises(ConfigError, match="positions='middle'"):
        GridAdapter(host, positions="middle")
    with pytest.raises(ConfigError, match="scope='all'"):
        GridAdapter(host, scope="all")
