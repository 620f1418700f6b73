"""Requests that do not fit: refused by name, row and value, or answered as the host answers; rows stay apart."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenflex
from tests.hosts.served import served
from tests.torture import requests
from tests.torture.faulty import FAULTS, Requests
from tests.torture.outcome import Counts
from tokenflex.errors import InputError
from tokenflex.testing.zoo.hosts import ZOO
from tokenflex.testing.zoo.recipe import AN_IMAGE, IMAGE, WORD

ROWS = ((1, 2, AN_IMAGE, 3), (4, AN_IMAGE, 5, 6))
HOSTS = requests.served()
few = settings(max_examples=15, deadline=None)


def asked(name, rows=ROWS):
    served(name)
    flex = requests.model(name)
    return flex, dict(ZOO[name].batch(flex.host.config, rows))


def refused(flex, inputs, message):
    """By every call alike."""
    words = {key: value for key, value in inputs.items() if key != "labels"}
    with torch.no_grad():
        for call in (
            lambda: flex(**inputs, level=1),
            lambda: flex(**inputs),
            lambda: flex.generate(**words, max_new_tokens=1),
            lambda: flex.decide(**words),
            lambda: flex.encode(words),
        ):
            with pytest.raises(InputError, match=message):
                call()


@pytest.mark.skipif(len(HOSTS) < len(requests.HOSTS), reason="this transformers doesn't know all of the hosts")
def test_hosts_of_every_family_are_tried():
    families = {requests.model(name).adapter.family for name in HOSTS}
    assert families == {"square", "latents", "tiles", "grid_thw", "ragged"}
    assert len(HOSTS) >= 20


@pytest.mark.parametrize("name", ["llava", "internvl", "llava_next", "qwen2_5_vl", "glm4v", "mistral3"])
def test_a_typed_placeholder_is_refused_with_its_row(name):
    flex, inputs = asked(name, ((1, 2, AN_IMAGE, 3), (4, 5, 6)))
    inputs["input_ids"][1, -2] = IMAGE
    refused(
        flex,
        inputs,
        r"row 1 has 1 image placeholder token|made 16 visual tokens.*\(row 0: 16, row 1: 16\)|row 1: 1|row 1 is 0 ",
    )
    flex, inputs = asked(name, ((1, 2, 3), (4, 5, 6)))
    inputs["input_ids"][1, -2] = IMAGE
    with pytest.raises(InputError, match="row 1 has 1 image placeholder token"):
        flex(**inputs)


@pytest.mark.parametrize(
    ("name", "key", "number", "value"),
    [
        ("llava_next", "image_sizes", 1, 0),
        ("qwen2_5_vl", "image_grid_thw", 0, 0),
        ("qwen2_5_vl", "image_grid_thw", 1, -2),
        ("mistral3", "image_sizes", 1, -16),
        ("mistral3", "image_sizes", 0, 2**40),
        ("lfm2_vl", "spatial_shapes", 1, 0),
    ],
)
def test_sizes_are_refused_with_image_and_value(name, key, number, value):
    flex, inputs = asked(name)
    inputs[key] = inputs[key].long().clone()
    inputs[key][number, -1] = value
    refused(flex, inputs, rf"{key} says .*{value}\] of image {number}; expected integers from 1 to")


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "gemma3"])
def test_what_is_no_tensor_is_refused_by_every_call_alike(name):
    flex, inputs = asked(name)
    types = next(key for key in ("mm_token_type_ids", "token_type_ids") if key in inputs)
    for value, kind in ((inputs[types].tolist(), "list"), ("large", "str")):
        refused(flex, {**inputs, types: value}, rf"{types} is {kind}; expected integers of input_ids' shape")
    if "image_grid_thw" in inputs:
        refused(flex, {**inputs, "image_grid_thw": "large"}, "image_grid_thw is a str that makes no tensor")
        refused(flex, {**inputs, "image_grid_thw": inputs["image_grid_thw"].tolist()}, "image_grid_thw a list")


def test_sizes_of_other_kinds_are_refused():
    flex, inputs = asked("qwen2_5_vl")
    grids = inputs["image_grid_thw"]
    refused(flex, {**inputs, "image_grid_thw": grids.float()}, r"image_grid_thw is torch.float32; expected integers")
    refused(flex, {**inputs, "image_grid_thw": grids[:, :2]}, r"has the shape \(2, 2\); expected \(images, 3\)")
    without = {key: value for key, value in inputs.items() if key != "image_grid_thw"}
    refused(flex, without, "image_grid_thw is missing")
    flex, inputs = asked("video_llama_3")
    fewer = {**inputs, "image_merge_sizes": inputs["image_merge_sizes"][:1]}
    refused(flex, fewer, "image_grid_thw of 2, image_merge_sizes of 1 images")


def test_sizes_may_be_lists():
    flex, inputs = asked("mistral3")
    listed = {**inputs, "image_sizes": inputs["image_sizes"].tolist()}
    assert [d.tokens for d in flex.decide(**listed, level=0)] == [d.tokens for d in flex.decide(**inputs, level=0)]


@pytest.mark.parametrize("value", [64, 10**6, -1])
def test_ids_outside_the_vocabulary_are_refused(value):
    flex, inputs = asked("llava")
    inputs["input_ids"][1, -1] = value
    refused(flex, inputs, rf"input_ids of row 1 has {value} at position \d+; the host's vocabulary is 0 to 63")
    flex, inputs = asked("llava", ((1, 2), (3, 4)))
    inputs["input_ids"][0, -1] = value
    with pytest.raises(InputError, match=rf"input_ids of row 0 has {value}"):
        flex.generate(**inputs, max_new_tokens=1)


def test_labels_outside_the_vocabulary_are_refused():
    flex, inputs = asked("llava")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] < WORD, -100)
    wrong = labels.clone()
    wrong[1, -1] = 64
    with pytest.raises(InputError, match=r"labels of row 1 has 64 at position \d+.*or -100"):
        flex(**inputs, labels=wrong)
    with pytest.raises(InputError, match=r"labels is torch\.float32"):
        flex(**inputs, labels=labels.float())
    assert flex(**inputs, labels=labels).loss.isfinite()


def test_masks_that_hide_a_row_or_say_more_than_yes_and_no_are_refused():
    flex, inputs = asked("llava", ((1, 2, AN_IMAGE, 3), (4, 5, 6)))
    mask = inputs["attention_mask"]
    hidden = mask.clone()
    hidden[1] = 0
    refused(flex, {**inputs, "attention_mask": hidden}, "0 on every token of row 1")
    refused(flex, {**inputs, "attention_mask": mask * 2}, "attention_mask of row 0 has 2 at position")
    additive = torch.zeros(mask.shape).masked_fill(mask == 0, -torch.inf)
    refused(flex, {**inputs, "attention_mask": additive}, "0 on every token of row 0|has -inf at position")
    refused(flex, {**inputs, "attention_mask": mask.tolist()}, "attention_mask is a list")
    for form in (mask.float(), mask.bool()):
        assert torch.equal(flex(**{**inputs, "attention_mask": form}, level=0).logits, flex(**inputs, level=0).logits)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "internvl", "mistral3"])
def test_what_an_encoder_refuses_is_an_input_error_that_says_what_it_was_given(name):
    flex, inputs = asked(name)
    pixels = inputs["pixel_values"]
    cut = {**inputs, "pixel_values": pixels[..., :-1]}
    refused(
        flex,
        cut,
        rf"vision encoder can't take .*pixel_values torch.float32 \({', '.join(map(str, cut['pixel_values'].shape))}\)",
    )
    with pytest.raises(InputError) as caught:
        flex(**cut)
    assert isinstance(caught.value.__cause__, (RuntimeError, ValueError))


def test_errors_of_memory_and_device_stay_what_they_are(monkeypatch):
    flex, inputs = asked("internvl")
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: no kernel"), MemoryError()):

        def broken(*args, error=error, **options):
            raise error

        monkeypatch.setattr(flex.host.base_model, "get_image_features", broken)
        with pytest.raises(type(error)) as caught:
            flex(**inputs)
        assert caught.value is error


def test_images_without_a_place_in_the_text_are_refused():
    flex, inputs = asked("internvl")
    _, text = asked("internvl", ((1, 2, 3), (4, 5, 6)))
    refused(flex, {**text, "pixel_values": inputs["pixel_values"]}, "came with a text that has no placeholder")


@few
@given(st.sampled_from(HOSTS), st.sampled_from(sorted(FAULTS)), st.randoms(use_true_random=False))
def test_any_fault_is_refused_or_answered_as_the_host_answers(name, fault, random):
    tally = Counts()
    with torch.no_grad():
        made = FAULTS[fault](Requests(ZOO[name], requests.model(name).host.config, random))
        requests.tried(name, made, random, tally, fault)
    assert not tally.seen


@few
@given(
    st.sampled_from(HOSTS),
    st.sampled_from(sorted(requests.STRANGE)),
    st.sampled_from([None, 0, 2, -1]),
    st.randoms(use_true_random=False),
)
def test_a_row_is_what_it_is_alone_whatever_stands_beside_it(name, kind, level, random):
    with torch.no_grad():
        state, found = requests.attempt(lambda: requests.beside(name, kind, level, random))
    if state == "refused":
        assert isinstance(found, InputError)
        assert kind == "NaN"
        return
    assert state == "ok", repr(found)
    assert found[0] <= requests.allowed(found[1])


def test_a_spoilt_image_changes_no_decision_of_another_row():
    flex, inputs = asked("llava", (*ROWS, (7, AN_IMAGE, 8)))
    plain = flex.decide(**inputs)
    spoilt = inputs["pixel_values"].clone()
    spoilt[-1, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"image 2 \(row 2 of the batch\)"):
        flex.decide(**{**inputs, "pixel_values": spoilt})
    flex.compressor.on_bad_scores = "finest"
    try:
        beside = flex.decide(**{**inputs, "pixel_values": spoilt})
    finally:
        flex.compressor.on_bad_scores = "raise"
    for one, other in zip(plain[:2], beside[:2], strict=True):
        assert one.level == other.level
        assert torch.equal(one.scores, other.scores)
    assert beside[2].margin is None


def test_decisions_say_how_close_they_were():
    flex, inputs = asked("llava")
    for decision in flex.decide(**inputs):
        others = [score for level, score in enumerate(decision.scores.tolist()) if level != decision.level]
        assert decision.margin == pytest.approx(float(decision.scores[decision.level]) - max(others))
        assert decision.margin >= 0
    assert all(decision.margin is None for decision in flex.decide(**inputs, level=0))
    capped = flex.decide(**inputs, budget=tokenflex.Budget(ceiling=0))
    free = flex.decide(**inputs)
    for one, other in zip(capped, free, strict=True):
        assert (one.margin < 0) == (other.level != 0)
