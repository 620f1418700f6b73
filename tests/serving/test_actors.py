"""Actors map tables: answers are those of ``generate``, requests those of ``export``, and no row spoils another's."""

import io

import pyarrow as pa
import pytest
import torch

import tokenflex
from tests.conftest import image
from tokenflex.chat import special_tokens, written
from tokenflex.errors import ConfigError, InputError
from tokenflex.evaluation.questions import read_question
from tokenflex.serving.actors import Answers, Engine, Requests, packed, prompt
from tokenflex.serving.converting import vllm_prompt
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor

NEW = 4


def encoded(index):
    written = io.BytesIO()
    image(index).save(written, format="PNG")
    return {"bytes": written.getvalue(), "path": None}


ROWS = [
    {"id": "a", "images": [encoded(0)], "question": "w1 w2"},
    {"id": "b", "images": [encoded(1), encoded(2)], "question": "w3 w4 w5"},
    {"id": "c", "images": [], "question": "w6 w7"},
    {"id": "d", "images": [{"bytes": b"no picture", "path": None}], "question": "w8"},
    {"id": "e", "images": [encoded(3)], "question": None},
    {"id": "f", "images": [encoded(4)], "question": "w9"},
]
BAD = {"d": "can't be read", "e": "has no 'question'"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model with its processor: (folder, model, processor)."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    flex, processor = tokenflex.wrap(tiny_llava_next()).eval(), tiny_llava_next_processor()
    flex.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder), flex, processor


def inputs(processor, row):
    sample = read_question(row, 0)
    text = written(processor, sample.messages, sample.name, reply=True)
    options = special_tokens(processor, [text])
    return dict(processor(text=[text], images=list(sample.images) or None, return_tensors="pt", **options))


def generated(flex, processor, row, **settings):
    batch = inputs(processor, row)
    options = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    out = flex.generate(**batch, **options, **settings)
    new = out.sequences[:, batch["input_ids"].shape[1] :]
    return {
        "answer": processor.batch_decode(new, skip_special_tokens=True)[0].strip(),
        "levels": [one.level for one in out.decisions],
        "visual_tokens": sum(one.tokens for one in out.decisions),
        "visual_tokens_full": sum(one.of for one in out.decisions),
        "error": None,
    }


@pytest.mark.parametrize("settings", [{}, {"level": 0}, {"level": -1}, {"budget": 0.4}])
def test_answers_are_those_of_generate(model, settings):
    folder, flex, processor = model
    found = Answers(folder, max_new_tokens=NEW, **settings)(pa.Table.from_pylist(ROWS)).to_pylist()
    assert [row["id"] for row in found] == [row["id"] for row in ROWS]
    for row, told in zip(ROWS, found, strict=True):
        if row["id"] in BAD:
            assert BAD[row["id"]] in told["error"]
            assert (told["answer"], told["levels"]) == (None, None)
        else:
            wanted = generated(flex, processor, row, **settings)
            assert {name: told[name] for name in wanted} == wanted


@pytest.mark.parametrize("settings", [{}, {"level": 1}, {"budget": 0.4}])
def test_requests_are_those_of_export(model, settings):
    folder, flex, processor = model
    actor = Requests(folder, **settings)
    together = actor(pa.Table.from_pylist(ROWS)).to_pylist()
    for row, told in zip(ROWS, together, strict=True):
        (alone,) = actor(pa.Table.from_pylist([row])).to_pylist()
        if row["id"] in BAD:
            assert BAD[row["id"]] in told["error"]
            assert BAD[row["id"]] in alone["error"]
            assert told["prompt_token_ids"] is None
            continue
        (request,) = flex.export(**inputs(processor, row), **settings)
        same(prompt(told), vllm_prompt(request))
        same(prompt(alone), vllm_prompt(request))
        assert prompt(alone).get("multi_modal_uuids") == vllm_prompt(request).get("multi_modal_uuids")
        assert told["levels"] == [image.decision.level for image in request.images]
        assert (told["visual_tokens"], told["visual_tokens_full"]) == (
            request.visual_tokens,
            request.visual_tokens_full,
        )


def same(one, other):
    """Keys are of the embeddings' bits, which depend a little on what else was in the batch."""
    assert one["prompt_token_ids"] == other["prompt_token_ids"]
    data = [told.get("multi_modal_data", {"image": []})["image"] for told in (one, other)]
    for mine, wanted in zip(*data, strict=True):
        torch.testing.assert_close(mine, wanted)


def test_grids_travel_with_embeddings():
    embeds, grid = torch.randn(6, 4, dtype=torch.bfloat16), torch.tensor([[1, 4, 4], [1, 2, 4]])
    made = {
        "prompt_token_ids": [5, 6],
        "multi_modal_data": {"image": {"image_embeds": embeds, "image_grid_thw": grid}},
        "multi_modal_uuids": {"image": ["k", "l"]},
    }
    row = pa.Table.from_pylist([packed(made)]).to_pylist()[0]
    told = prompt(row)
    assert told.pop("multi_modal_data")["image"].keys() == made["multi_modal_data"]["image"].keys()
    for name, value in made.pop("multi_modal_data")["image"].items():
        assert torch.equal(prompt(row)["multi_modal_data"]["image"][name], value)
    assert told == made


def test_images_and_conversations_are_not_passed_on_and_the_rest_is(model):
    row = {"id": 7, "image": encoded(0), "messages": [{"role": "user", "content": "w1 w2"}], "note": "kept", "row": 3}
    (told,) = Answers(model[0], max_new_tokens=1)(pa.Table.from_pylist([row])).to_pylist()
    assert {"id", "note", "row"} < set(told)
    assert not {"image", "images", "messages"} & set(told)
    assert (told["id"], told["note"], told["row"], told["error"]) == (7, "kept", 3, None)


def test_levels_and_budgets_that_are_none_are_refused_before_any_row(model):
    for actor in (Answers, Requests):
        with pytest.raises(InputError, match="level 9 is out of range"):
            actor(model[0], level=9)
        with pytest.raises(InputError, match="budget=3"):
            actor(model[0], budget=3)


def test_a_missing_engine_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(ConfigError, match="pip install vllm"):
        Engine("model")
