"""A recipe's parts: saved ones are taken up, fresh ones as asked for, contradictions errors; live as from a store."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tokenflex
from tests.training.conftest import ROWS
from tokenflex.errors import ConfigError
from tokenflex.model import FlexModel
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor
from tokenflex.training import ChatDataset, FeedbackStore, FlexCollator, recipe, run, score
from tokenflex.training.parts import of_host

ROUTER = tokenflex.routers.get("avg").Config(text_tokens=4, dropout=0.0)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A saved FlexModel, its plain host, its parts, other parts, and a store of its feedback."""
    folder = tmp_path_factory.mktemp("there")
    torch.manual_seed(5)
    flex = tokenflex.wrap(tiny_llava_next(), router=ROUTER)
    processor = tiny_llava_next_processor()
    for name, model in (("flex", flex), ("host", flex.host)):
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    tokenflex.wrap(tiny_llava_next(), router=ROUTER, voter="mean").save_parts(folder / "other")
    score(flex, ChatDataset(ROWS), FlexCollator(processor), folder / "store", router_inputs="auto", progress=False)
    return folder


@pytest.fixture
def both(there):
    """Parts of a recipe, with the host and without it: state dicts, and what was said."""

    def make(host="flex", **entries):
        store, found = FeedbackStore(there / "store"), []
        for name, way in (("live", lambda *a: run.load(*a)), ("alone", lambda one, *a: run.alone(one, store, *a))):
            said = []
            given = {key: str(there / value) if key == "parts" else value for key, value in entries.items()}
            model, _ = way(recipe.Recipe(stage=4, host=str(there / host), data="unread", **given), said.append, 3)
            found.append((name, model.compressor, [line for line in said if not line.startswith("scaler")]))
        return found

    return make


def same(found):
    (_, live, said), (_, alone, told) = found
    assert said == told
    assert live.router.config == alone.router.config
    assert live.voter.config == alone.voter.config
    assert live.state_dict().keys() == alone.state_dict().keys()
    for name, value in live.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name
    return live, said


def test_saved_parts_are_taken_up(both, there):
    parts, said = same(both())
    assert said == [f"router: from {there / 'flex'}", f"voter: from {there / 'flex'}"]
    state = load_file(there / "flex" / "model.safetensors")
    assert all(torch.equal(value, state[f"compressor.{name}"]) for name, value in parts.state_dict().items())


def test_trained_parts_win_over_those_of_the_host(both, there):
    parts, said = same(both(parts="other"))
    assert said == [f"router: from {there / 'other'}", f"voter: from {there / 'other'}"]
    state = load_file(there / "other" / "tokenflex.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in parts.state_dict().items())


def test_fresh_parts_of_a_plain_host(both):
    parts, said = same(both("host", router_config={"text_tokens": 8}, voter="mean"))
    assert said == ["router: fresh avg", "voter: fresh mean"]
    assert parts.router.config == tokenflex.routers.get("avg").Config(text_tokens=8)


def test_keys_that_say_what_is_there_are_fine(both):
    same(both(router="avg", router_config='{"text_tokens": 4}', voter="position-weighted"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"router_config": {"text_tokens": 8}}, "the recipe asks for the router 'avg' .*'text_tokens': 8.*, and .*flex "
         r"has 'avg' .*'text_tokens': 4.* start anew with fresh: \[router\]"),
        ({"router": "random"}, "asks for the router 'random'"),
        ({"voter": "mean"}, r"the voter 'mean' .* fresh: \[voter\]"),
        ({"parts": "other", "voter": "attention"}, "the voter 'attention' .*other has 'mean'"),
        ({"scaler": "stride"}, "the scaler 'stride'"),
        ({"router_config": {"depth": 3}}, r"unknown setting\(s\) \['depth'\]"),
    ],
)  # fmt: skip
def test_contradictions_are_errors_both_ways(there, entries, message):
    given = {key: str(there / value) if key == "parts" else value for key, value in entries.items()}
    one = recipe.Recipe(stage=4, host=str(there / "flex"), data="unread", **given)
    with pytest.raises(ConfigError, match=message):
        run.load(one)
    with pytest.raises(ConfigError, match=message):
        run.alone(one, FeedbackStore(there / "store"))


def test_fresh_starts_anew(both, there):
    parts, said = same(both(fresh=["router"], router_config={"dropout": 0.5, "text_tokens": 4}))
    assert said == ["router: fresh avg", f"voter: from {there / 'flex'}"]
    assert parts.router.config == tokenflex.routers.get("avg").Config(dropout=0.5, text_tokens=4)
    state = load_file(there / "flex" / "model.safetensors")
    assert all(torch.equal(v, state[f"compressor.voter.{n}"]) for n, v in parts.voter.state_dict().items())
    with pytest.raises(ConfigError, match=r"the voter of .*flex doesn't fit .* anew too: fresh: \[router, voter\]"):
        both(fresh=["router"], router_config={"text_tokens": 8})
    parts, said = same(both(fresh=["router", "voter"], router_config={"text_tokens": 8}))
    assert said == ["router: fresh avg", "voter: fresh position-weighted"]


def test_a_store_has_its_scaler(there):
    one = recipe.Recipe(stage=4, host=str(there / "flex"), data="unread", fresh=["scaler"])
    with pytest.raises(ConfigError, match=r"scored with its own\. Score it again"):
        run.alone(one, FeedbackStore(there / "store"))
    assert run.load(one)[0].compressor.scaler.num_levels == 5


def test_a_warm_start_trains_alike_live_and_from_the_store(there, tmp_path):
    """From losses to weights; both write the processor."""
    (tmp_path / "rows.json").write_text("[]")
    text = {"use_cpu": True, "max_steps": 3, "per_device_train_batch_size": 2, "save_strategy": "no",
            "logging_steps": 1, "disable_tqdm": True, "dataloader_pin_memory": False, "warmup_steps": 0.0}  # fmt: skip
    losses, ends = {}, {}
    for name in ("live", "alone"):
        args = recipe.FlexTrainingArguments(output_dir=str(tmp_path / name), **text)
        stored = str(there / "store") if name == "alone" else None
        one = recipe.Recipe(stage=4, host=str(there / "flex"), data="unread", feedback=stored)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "_data", lambda *a, **k: (ChatDataset(ROWS), FlexCollator(tiny_llava_next_processor())))
            if name == "alone":
                patch.setattr(run, "load", lambda *a: pytest.fail("the host was loaded"))
            trainer = run.train(one, args)
        losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        ends[name] = load_file(tmp_path / name / "tokenflex.safetensors")
        assert (tmp_path / name / "processor_config.json").exists()
    assert len(losses["live"]) == 3
    torch.testing.assert_close(losses["alone"], losses["live"], rtol=1e-5, atol=1e-5)
    for name, value in ends["live"].items():
        torch.testing.assert_close(ends["alone"][name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_parts_are_read_from_shards_without_the_host(there, tmp_path):
    FlexModel.from_pretrained(there / "flex").save_pretrained(tmp_path / "cut", max_shard_size="100KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    one, other = of_host(str(tmp_path / "cut"))["router"], of_host(str(there / "flex"))["router"]
    assert one.config("router") == other.config("router") == ROUTER
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())
    assert of_host(str(there / "host")) == {}
    index = tmp_path / "cut" / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    name = next(name for name in told["weight_map"] if name.startswith("compressor."))
    for bad, message in (
        ("../x.safetensors", "isn't an index of shards"),
        ("gone.safetensors", "lacks gone.safetensors"),
    ):
        told["weight_map"][name] = bad
        index.write_text(json.dumps(told))
        with pytest.raises(ConfigError, match=message):
            of_host(str(tmp_path / "cut"))
    with pytest.raises(ConfigError, match="can't be read"):
        of_host(str(tmp_path / "nowhere"))


def test_a_scaler_of_other_weights_is_refused(there):
    """Its router would learn from levels that the model hasn't."""
    store = FeedbackStore(there / "store")
    store.scaler_weights = lambda: {"weight": torch.zeros(1)}  # pyright: ignore[reportAttributeAccessIssue]
    one = recipe.Recipe(stage=4, host=str(there / "flex"), data="unread")
    with pytest.raises(ConfigError, match=r"with other weights than .* was scored with"):
        run.alone(one, store)


def test_damaged_weights_of_a_saved_model(there, tmp_path):
    flex = FlexModel.from_pretrained(there / "flex")
    flex.save_pretrained(tmp_path / "m")
    state = load_file(tmp_path / "m" / "model.safetensors")
    name = next(name for name in state if name.startswith("compressor."))
    save_file(state | {name: torch.full_like(state[name], float("nan"))}, tmp_path / "m" / "model.safetensors")
    with pytest.raises(ConfigError, match=name.removeprefix("compressor.")):
        of_host(str(tmp_path / "m"))
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        of_host(str(tmp_path / "m"))
