"""Quirks of the published code that no golden figure covers: what we do instead, and how to get the old behaviour."""

import math

import pytest
import torch
from transformers import AutoModelForImageTextToText

import tokenflex
from tests.parity.golden import DATA, case, cases
from tests.parity.test_end_to_end import fresh, inputs_for, one_step, training_inputs
from tokenflex import conversion
from tokenflex.contracts import Grid
from tokenflex.hosts.llava_next import LlavaNextAdapter
from tokenflex.ops.packing import kept_spans
from tokenflex.ops.relevance import relevance
from tokenflex.routers.avg import AVGRouter
from tokenflex.training import MultiGranularityTrainer, RGLFTrainer


@pytest.fixture(scope="module")
def g8(tmp_path_factory):
    """The smaller golden checkpoint, converted; float32."""
    out = tmp_path_factory.mktemp("g8") / "converted"
    conversion.convert(DATA / "e2e_g8" / "checkpoint", out)
    return tokenflex.load_parts(out, host=AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)).eval()


def test_every_image_is_judged_by_the_words_of_its_own_row(g8):
    """The published code looks the words up by the image's number: the third image would get the third row's."""
    ids = torch.tensor([[1, 9, -200, 8, -200, 7, 7, 6, 5], [1, -200, 30, 31, 32, 33, 34, 35, 36]])
    together = inputs_for(g8, "e2e_g8", [0, 1, 2], ids)
    decisions = g8.decide(**together)
    alone = g8.decide(**inputs_for(g8, "e2e_g8", [2], ids[1:]))
    torch.testing.assert_close(decisions[2].scores, alone[0].scores, atol=1e-5, rtol=0)
    first = g8.decide(**inputs_for(g8, "e2e_g8", [0, 1], ids[:1]))
    for one, other in zip(decisions[:2], first, strict=True):
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)


def test_a_saved_router_is_the_router_that_is_loaded(g8, tmp_path):
    """The published loader builds the router anew and relies on a second pass over the files to fill it."""
    g8.save_parts(tmp_path)
    again = tokenflex.load_parts(tmp_path, host=g8.host)
    expected, found = g8.compressor.state_dict(), again.compressor.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_similarities_are_float32_whatever_the_hosts_precision(dtype):
    data = case("text_filter", next(key for key, info in cases("text_filter").items() if info["dtype"] == "float32"))
    image, text = data["image"].to(dtype), data["text"].to(dtype)
    found = relevance(image, text)
    assert found.dtype == torch.float32
    assert torch.equal(found, relevance(image.float(), text.float()))


def test_words_are_the_last_turns_by_default_the_whole_prompts_as_published(g8):
    inputs = inputs_for(g8, "e2e_g8", [0], torch.tensor([[1, 9, 10, 11, -200, 8, 7, 6]]))
    words = {}
    for scope in ("last-turn", "prompt", "published"):
        adapter = LlavaNextAdapter(g8.host, scope=scope, marker=(10, 11))
        (instruction,) = adapter.instructions(adapter.read(inputs))
        words[scope] = int(instruction.mask.sum())
    assert words == {"last-turn": 3, "prompt": 7, "published": 7}


def test_right_padded_batches_continue_like_left_padded_ones(g8):
    """The published code generates behind the padding when the batch is padded on the right."""
    ids = torch.tensor([[1, 9, -200, 8, 7, 6, 5], [1, -200, 30, 31, 0, 0, 0]])
    left = torch.tensor([[1, 9, -200, 8, 7, 6, 5], [0, 0, 0, 1, -200, 30, 31]])
    made = [
        g8.generate(**inputs_for(g8, "e2e_g8", [0, 1], rows, rows != 0), level=[2, 3], max_new_tokens=4)[:, -4:]
        for rows in (ids, left)
    ]
    assert torch.equal(*made)


def test_a_prompt_that_is_only_a_image(g8):
    """The published code takes it for a decoding step."""
    inputs = inputs_for(g8, "e2e_g8", [0], torch.tensor([[-200]]))
    (decision,) = g8.decide(**inputs)
    assert decision.scores.isfinite().all()
    assert g8.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2


def test_images_as_thin_as_a_line_keep_local_tokens():
    """At 36 and 72 tokens per tile the published cut leaves nothing of 1000 x 50 but the whole view."""
    image = next(i for i in cases("packing")["real_unpad"]["images"] if i["size_wh"] == [1000, 50])
    across, down = image["grid_wh"]
    for said in image["per_granularity"].values():
        kept = Grid(*said["tile_hw"])
        cuts = {
            unpad: kept_spans(Grid(down, across), Grid(24, 24), kept, (50, 1000), unpad)
            for unpad in ("released", "geometric")
        }
        assert cuts["geometric"][0][1] > cuts["geometric"][0][0]
        if said["tokens"] in (36, 72):
            assert cuts["released"][0][1] <= cuts["released"][0][0]


def test_stage_three_trains_the_vision_tower_unless_told_otherwise(g8, tmp_path):
    own = fresh(g8)
    _, _, batch = training_inputs(own, "e2e_g8", "batch0")
    _, gradients = one_step(MultiGranularityTrainer, own, batch, tmp_path)
    tower = [gradient for name, gradient in gradients.items() if "vision_tower" in name]
    assert tower
    assert any(bool(gradient.any()) for gradient in tower)


def test_dropout_is_published_and_can_be_switched_off(g8):
    assert AVGRouter.Config().dropout == 0.1
    settings = {**g8.compressor.router.config.to_dict(), "dropout": 0.0}
    router = AVGRouter.Config.from_dict(settings).build(dim=g8.adapter.dim, num_levels=5)
    assert all(module.p == 0.0 for module in router.modules() if isinstance(module, torch.nn.Dropout))


@pytest.mark.parametrize("guard", [True, False])
def test_one_sample_without_answers_spoils_the_published_step_only(g8, tmp_path, guard):
    own = fresh(g8)
    _, _, batch = training_inputs(own, "e2e_g8", "batch0")
    labels = batch["labels"].clone()
    labels[1] = -100
    loss, _ = one_step(RGLFTrainer, own, batch | {"labels": labels}, tmp_path, guard=guard)
    assert math.isnan(loss) != guard
