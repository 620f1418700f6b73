"""Visual tokens kept before the projector: less to store, and the same to the last bit."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

import tokenflex
from tests.training.conftest import ROWS
from tokenflex.errors import ConfigError, DataError
from tokenflex.hosts import before_projector
from tokenflex.testing.tiny_hosts import tiny_llava_next
from tokenflex.training import ChatDataset, FeedbackStore, RGLFTrainer, RouterModel, run, score
from tokenflex.training.recipe import Recipe
from tokenflex.training.router_only import StoredRows, stored_batch

WIDE = 64
"""Numbers of a projected token; the tiny tower's have 32."""


def wide(dtype=torch.float32):
    text = tiny_llava_next().config.text_config.to_dict()
    torch.manual_seed(0)
    host = tiny_llava_next(text_config=LlamaConfig(**{**text, "hidden_size": WIDE, "head_dim": WIDE // 4}))
    return tokenflex.wrap(host.to(dtype))


def scored(flex, collator, folder, **settings):
    dataset = ChatDataset(ROWS)
    settings = {"batch_size": 1, "part_size": 2, "progress": False, "router_inputs": "auto"} | settings
    return score(flex, dataset, collator, folder, **settings)


def size(folder):
    return sum(path.stat().st_size for path in folder.glob("part-*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_router_inputs_are_the_live_ones_to_the_last_bit(collator, tmp_path, dtype, precision):
    flex, said = wide(dtype), []
    store = scored(flex, collator, tmp_path, precision=precision, say=said.append)
    assert store.kept_at == "tower"
    assert any("before the projector" in line for line in said)
    for place in (0, 1, 3):
        batch = collator([ChatDataset(ROWS)[place]])
        enabled = precision == "bf16"
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            live = flex.encode(batch)
        kept, seen = store.kept(place)[0], store.inputs(place)[0]
        assert len(seen) == len(live.images) > 0
        for before, one, other in zip(kept, seen, live.images, strict=True):
            assert before.features.shape[-1] == 32
            assert one.features.dtype == dtype
            assert torch.equal(one.features, other.features.to(dtype))


def test_training_is_the_same_to_the_last_bit_and_the_store_is_smaller(collator, tmp_path, arguments):
    ends = {}
    for at in ("tower", "projector"):
        store = scored(wide(), collator, tmp_path / at, router_inputs_at=at)
        assert store.kept_at == at
        torch.manual_seed(0)
        model = RouterModel.from_store(store)
        assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"compressor"}
        before = {name: value.clone() for name, value in model.state_dict().items()}
        RGLFTrainer(model, arguments(max_steps=4), feedback=store).train()
        ends[at] = model.state_dict()
        assert not all(torch.equal(before[name], value) for name, value in ends[at].items())
    assert ends["tower"].keys() == ends["projector"].keys()
    for name, value in ends["tower"].items():
        assert torch.equal(value, ends["projector"][name]), name
    assert size(tmp_path / "tower") < 0.6 * size(tmp_path / "projector")


def test_stores_of_both_kinds_can_be_trained_from_and_evaluated_on(collator, tmp_path, arguments):
    stores = {at: scored(wide(), collator, tmp_path / at, router_inputs_at=at) for at in ("tower", "projector")}
    found = {}
    for at, other in (("tower", "projector"), ("projector", "tower")):
        torch.manual_seed(0)
        model = RouterModel.from_store(stores[at])
        trainer = RGLFTrainer(model, arguments(), feedback=stores[at], eval_dataset=stores[other])
        found[at] = trainer.evaluate()["eval_loss"]
    assert found["tower"] == found["projector"]


def test_a_store_from_before_there_was_a_choice_is_read_and_gone_on_with(collator, tmp_path):
    flex = wide()
    store = scored(flex, collator, tmp_path, router_inputs_at="projector")
    expected = store.inputs(0)[0][0].features
    path = tmp_path / "manifest.json"
    told = json.loads(path.read_text())
    assert told.pop("router_inputs_at") == "projector"
    del told["digest"]
    path.write_text(json.dumps(told))
    (tmp_path / "part-00000-00001.parquet").unlink()
    again = scored(flex, collator, tmp_path)
    assert again.kept_at == "projector"
    assert again.projector is None
    assert torch.equal(again.inputs(0)[0][0].features, expected)
    with pytest.raises(ConfigError, match=r"something else: router_inputs_at: 'projector' stored, 'tower' now"):
        scored(flex, collator, tmp_path, router_inputs_at="tower")


def test_auto_goes_on_as_the_folder_has_it(collator, tmp_path):
    flex = wide()
    scored(flex, collator, tmp_path)
    whole = FeedbackStore(tmp_path).inputs(3)[0][1].features
    for part in tmp_path.glob("part-*.parquet"):
        part.unlink()
    assert torch.equal(scored(flex, collator, tmp_path).inputs(3)[0][1].features, whole)


def test_auto_keeps_what_is_not_smaller_or_not_the_same_after_the_projector(fresh, collator, tmp_path):
    assert scored(fresh(), collator, tmp_path / "narrow").kept_at == "projector"
    assert scored(wide(), collator, tmp_path / "lossy", router_inputs="bfloat16").kept_at == "projector"
    assert scored(wide(), collator, tmp_path / "none", router_inputs=None).manifest["router_inputs_at"] is None


def test_refusals_say_why(fresh, collator, tmp_path):
    with pytest.raises(ConfigError, match=r"can't be had here: the tower's tokens have 32 numbers each and the proj"):
        scored(fresh(), collator, tmp_path, router_inputs_at="tower")
    with pytest.raises(ConfigError, match=r"router_inputs_at='twoer'; use auto, tower, projector"):
        scored(fresh(), collator, tmp_path, router_inputs_at="twoer")


def test_a_projector_that_was_changed_or_lost_is_found_out(collator, tmp_path):
    store = scored(wide(), collator, tmp_path)
    path = tmp_path / "projector.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"has other weights than .* was scored with"):
        RouterModel.from_store(FeedbackStore(store.folder))
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        FeedbackStore(store.folder).inputs(0)


def test_weights_of_another_projector_are_refused():
    flex = wide()
    told, state = before_projector.described(flex.adapter), before_projector.weights(flex.adapter)
    with pytest.raises(ConfigError, match=r"aren't those of LlavaNextMultiModalProjector"):
        before_projector.rebuilt(told, {name: value for name, value in state.items() if "bias" not in name})
    with pytest.raises(ConfigError, match=r"model_type 'llama' has no projector"):
        before_projector.rebuilt({"config": {"model_type": "llama"}}, state)


def test_the_router_model_projects_on_its_own(collator, tmp_path):
    """Rows as they are kept, and rows that went through the projector already, score alike."""
    store = scored(wide(), collator, tmp_path)
    model = RouterModel.from_store(store).eval()
    rows = {projected: StoredRows(store, projected) for projected in (False, True)}
    kept, seen = (model.encode(stored_batch([rows[way][0], rows[way][3]])) for way in (False, True))
    assert torch.equal(model.scores(kept), model.scores(seen))
    assert all(image.features.shape[-1] == WIDE for image in kept.images)
    assert torch.equal(model.scores(replace(kept, images=seen.images)), model.scores(seen))


@pytest.mark.parametrize("at", ["auto", "projector"])
def test_a_recipe_says_after_what_tokens_are_kept(fresh, collator, arguments, tmp_path, monkeypatch, at):
    told = {}
    monkeypatch.setattr(run, "load", lambda *args: (fresh(), collator.processor))
    monkeypatch.setattr(run, "_data", lambda *args: (ROWS, collator))
    monkeypatch.setattr(run, "score", lambda *args, **settings: told.update(settings))
    settings = {} if at == "auto" else {"levels_cache_at": at}
    recipe = Recipe(stage=4, host="host", data="data", feedback=str(tmp_path), levels_cache=True, **settings)
    run.feedback(recipe, arguments())
    assert (told["router_inputs"], told["router_inputs_at"]) == ("auto", at)
