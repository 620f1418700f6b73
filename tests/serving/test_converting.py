"""Requests for engines: whatever reads them as an engine does answers as ``FlexModel.generate`` does."""

import base64
import io

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

import tokenflex
from tests.hosts.served import served
from tokenflex.errors import InputError
from tokenflex.serving import chat_items, prompt_embeds, vllm_prompt
from tokenflex.testing.zoo.recipe import A_VIDEO, AN_IMAGE, END, START

ROWS = ((1, 2, AN_IMAGE, 3), (4, 5, 6, 7, 8), (AN_IMAGE, 9, 10, AN_IMAGE, 11, 12), (3, AN_IMAGE, 5, 7))
PLAIN = ["llava_next", "llava", "llava_onevision", "internvl", "mistral3"]
GRID = ["qwen2_vl", "qwen2_5_vl"]
LEVELS = [1, 3, 0, 2]
NEW = 5


def model(name, positions="compact"):
    tiny = served(name)
    host = tiny.build()
    options = {"positions": positions} if name.startswith(("qwen", "glm")) else {}
    adapter = tokenflex.hosts.get(name)(host, **options)
    flex = tokenflex.wrap(host, adapter=adapter, router="constant", voter="mean").eval()
    return flex, tiny.batch(host.config, ROWS, side="left")


def settings(flex):
    return {"max_new_tokens": NEW, "min_new_tokens": NEW, "suppress_tokens": list(flex.adapter.placeholder_ids)}


def answers(flex, inputs, **choice):
    return flex.generate(**inputs, **settings(flex), **choice)[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_prompt_as_embeddings_is_answered_alike(name, side):
    flex, inputs = model(name)
    inputs = served(name).batch(flex.host.config, ROWS, side=side)
    left = served(name).batch(flex.host.config, ROWS, side="left")
    for choice in ({"level": LEVELS}, {"level": 0}, {"level": -1}, {"budget": 0.4}):
        expected = answers(flex, left, **choice)
        for request, want in zip(flex.export(**inputs, **choice), expected, strict=True):
            embeds = prompt_embeds(flex, request)
            assert embeds.shape == (len(request.compact_ids), flex.adapter.dim)
            got = flex.host.generate(inputs_embeds=embeds[None], **settings(flex))
            assert got[0].tolist() == want.tolist()


@pytest.mark.parametrize("name", GRID)
def test_ids_and_a_grid_are_answered_alike(name):
    flex, inputs = model(name)
    for choice in ({"level": LEVELS}, {"level": 0}, {"level": -1}):
        expected = answers(flex, inputs, **choice)
        for request, want in zip(flex.export(**inputs, **choice), expected, strict=True):
            ids = torch.tensor([request.compact_ids])
            told = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if request.images:
                rows = [torch.cat([image.embeddings for image in request.images])]
                told["image_grid_thw"] = torch.tensor([image.grid for image in request.images])
                told["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=rows)}
                told["mm_token_type_ids"] = request.visual[None].long()
            got = flex.host.generate(**told, **settings(flex))[0, ids.shape[1] :]
            assert got.tolist() == want.tolist()
            with pytest.raises(InputError, match="places visual tokens by rows and columns"):
                prompt_embeds(flex, request)


@pytest.mark.parametrize("name", [*PLAIN, *GRID])
def test_counts_ids_and_order(name):
    flex, inputs = model(name)
    decisions = flex.decide(**inputs, level=LEVELS)
    requests = flex.export(**inputs, level=LEVELS)
    assert [len(request.images) for request in requests] == [1, 0, 2, 1]
    told = [image.decision for request in requests for image in request.images]
    assert [(one.level, one.tokens, one.of) for one in told] == [(d.level, d.tokens, d.of) for d in decisions]
    whole = flex.prepare(inputs, LEVELS)[0].inputs
    for row, request in enumerate(requests):
        kept = whole["input_ids"][row][whole["attention_mask"][row] != 0]
        assert list(request.compact_ids) == kept.tolist()
        assert request.visual_tokens == int(request.visual.sum()) == sum(len(i.embeddings) for i in request.images)
        assert request.visual_tokens_full == sum(image.decision.of for image in request.images)
        placeholders = [token for token in request.prompt_ids if token in flex.adapter.placeholder_ids]
        assert len(placeholders) == len(request.images)


def test_text_alone():
    flex, inputs = model("llava_next")
    ids = inputs["input_ids"][1][inputs["attention_mask"][1] != 0]
    (request,) = flex.export(input_ids=ids[None])
    assert (request.prompt_ids, request.compact_ids, request.images) == (tuple(ids.tolist()), tuple(ids.tolist()), ())
    assert vllm_prompt(request) == {"prompt_token_ids": ids.tolist()}
    assert chat_items(request) == []
    assert prompt_embeds(flex, request).equal(flex.get_input_embeddings()(ids))


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_keys_are_equal_for_equal_embeddings_only(name):
    flex, inputs = model(name)
    keys = {level: [i.key for r in flex.export(**inputs, level=level) for i in r.images] for level in range(4)}
    again = [i.key for r in flex.export(**inputs, level=2) for i in r.images]
    assert again == keys[2]
    every = [key for level in keys.values() for key in level]
    assert len(set(every)) == len(every)
    changed = {**inputs, "pixel_values": inputs["pixel_values"] + 1}
    assert not {i.key for r in flex.export(**changed, level=2) for i in r.images} & set(every)


def test_levels_of_equal_embeddings_have_keys_of_their_own():
    flex, inputs = model("llava_next")
    image = flex.export(**inputs, level=1)[0].images[0]
    decision = type(image.decision)(level=2, scores=None, tokens=image.decision.tokens, of=image.decision.of)
    assert type(image)(image.embeddings, image.grid, decision).key != image.key
    assert type(image)(image.embeddings, (1, 2, 2), image.decision).key != image.key
    assert type(image)(image.embeddings, image.grid, image.decision).key == image.key


def test_the_language_model_is_not_run(monkeypatch):
    flex, inputs = model("llava_next")
    monkeypatch.setattr(flex.host.model.language_model, "forward", lambda *args, **kwargs: pytest.fail("it was run"))
    assert flex.export(**inputs)


def test_vllm_prompts():
    flex, inputs = model("llava_next")
    request = flex.export(**inputs, level=LEVELS)[2]
    prompt = vllm_prompt(request)
    assert prompt["prompt_token_ids"] == list(request.prompt_ids)
    given = prompt["multi_modal_data"]["image"]
    assert all(one.equal(image.embeddings) for one, image in zip(given, request.images, strict=True))
    assert prompt["multi_modal_uuids"] == {"image": [image.key for image in request.images]}
    flex, inputs = model("qwen2_5_vl")
    request = flex.export(**inputs, level=LEVELS)[2]
    data = vllm_prompt(request)["multi_modal_data"]["image"]
    assert data["image_grid_thw"].tolist() == [list(image.grid) for image in request.images]
    assert data["image_embeds"].equal(torch.cat([image.embeddings for image in request.images]))


def test_vllm_writes_the_brackets_of_internvl_itself():
    flex, inputs = model("internvl")
    for request in flex.export(**inputs, level=LEVELS):
        kept = vllm_prompt(request)["prompt_token_ids"]
        assert len(kept) == len(request.prompt_ids) - 2 * len(request.images)
        assert set(request.prompt_ids) - set(kept) <= {START, END}
        if request.images:
            assert not {START, END} & set(kept)


def read(item):
    return torch.load(io.BytesIO(base64.b64decode(item)), weights_only=True)


def test_chat_items():
    flex, inputs = model("llava_next")
    request = flex.export(**inputs, level=LEVELS)[2]
    for item, image in zip(chat_items(request), request.images, strict=True):
        assert (item["type"], item["uuid"]) == ("image_embeds", image.key)
        assert read(item["image_embeds"]).equal(image.embeddings)
    flex, inputs = model("qwen2_5_vl")
    request = flex.export(**inputs, level=LEVELS)[0]
    (item,) = chat_items(request)
    assert read(item["image_embeds"]["image_embeds"]).equal(request.images[0].embeddings)
    assert tuple(read(item["image_embeds"]["image_grid_thw"]).tolist()) == request.images[0].grid


def test_what_cannot_travel_is_refused():
    flex, inputs = model("qwen2_5_vl", "span")
    with pytest.raises(InputError, match="positions='compact'"):
        flex.export(**inputs, level=0)
    flex, inputs = model("qwen3_vl")
    with pytest.raises(InputError, match="DeepStack"):
        flex.export(**inputs, level=0)
    flex, inputs = model("gemma3")
    request = flex.export(**inputs, level=0)[0]
    with pytest.raises(InputError, match="can't be handed on as embeddings alone"):
        prompt_embeds(flex, request)
    flex, inputs = model("mistral3")
    with pytest.raises(InputError, match="mistral3: it hasn't been shown"):
        vllm_prompt(flex.export(**inputs, level=0)[0])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision", "glm4v"])
def test_videos_are_refused(name):
    flex, _ = model(name)
    inputs = served(name).batch(flex.host.config, ((1, A_VIDEO, 2),))
    with pytest.raises(InputError, match="only images are exported"):
        flex.export(**inputs, level=0)
