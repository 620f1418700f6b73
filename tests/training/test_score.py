"""Feedback scored once: complete after any interruption, refused when it belongs to something else, as good as live."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.parquet as pq
import pytest
import torch

import tokenflex
from tests.conftest import image
from tests.killed import killed_at_renaming
from tests.training.conftest import ROWS, Forgetful, turns
from tokenflex import routers, scalers
from tokenflex.contracts import ComponentConfig, Grid, Router, Scaler
from tokenflex.errors import ConfigError, DataError
from tokenflex.ops.ballots import one_per_view
from tokenflex.ops.keeping import selected
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor
from tokenflex.training import ChatDataset, FeedbackStore, FlexCollator, RGLFObjective, RGLFTrainer, RouterModel, score
from tokenflex.training.router_only import StoredRows, stored_batch
from tokenflex.training.store import FeedbackWriter, ScoredSample

MANY = [
    *ROWS,
    *({"id": f"m{i}", "image": image(i), "messages": turns(f"w{i} w2", f"w{i + 3} w4")} for i in range(4, 11)),
]


@pytest.fixture
def dataset():
    return ChatDataset(MANY)


def scored(flex, dataset, collator, folder, **settings):
    return score(flex, dataset, collator, folder, **{"batch_size": 2, "part_size": 2, "progress": False} | settings)


def same_store(one, other):
    assert one.ids.tolist() == other.ids.tolist()
    torch.testing.assert_close(one.nll, other.nll, equal_nan=True)
    assert torch.equal(one.answer_tokens, other.answer_tokens)
    assert torch.equal(one.visual_tokens, other.visual_tokens)


def test_the_store_holds_what_live_training_computes(fresh, dataset, collator, tmp_path):
    flex = fresh()
    store = scored(flex, dataset, collator, tmp_path / "s")
    assert store.ids.tolist() == list(range(len(MANY)))
    for place in range(len(MANY)):
        batch = collator([dataset[place]])
        answers = int((batch["labels"][:, 1:] != -100).sum())
        assert int(store.answer_tokens[place]) == answers > 0
        tokens = sum((torch.tensor([flex.decide(**batch, level=g)[i].tokens for g in range(5)])
                      for i in range(len(dataset[place].images))), torch.zeros(5, dtype=torch.long))  # fmt: skip
        assert store.visual_tokens[place].tolist() == tokens.tolist()
        if dataset[place].images:
            live = flex(**batch, objective=RGLFObjective()).feedback[0]
            torch.testing.assert_close(store.feedback(place), live)


def test_parquet_is_plain(fresh, dataset, collator, tmp_path):
    scored(fresh(), dataset, collator, tmp_path)
    table = pq.read_table(sorted(tmp_path.glob("*.parquet"))[0])
    assert table.column_names == ["id", "nll", "answer_tokens", "visual_tokens"]
    assert len(table["nll"][0].as_py()) == 5
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", *[".parquet"] * 6]


def test_samples_without_answers_are_nan_and_left_out(fresh, dataset, processor, tmp_path, arguments):
    flex, collator = fresh(), Forgetful(processor)
    store = scored(flex, dataset, collator, tmp_path / "s", router_inputs="auto")
    assert store.nll.isnan().all(-1).nonzero().flatten().tolist() == [1]
    assert int(store.answer_tokens[1]) == 0
    trainer = RGLFTrainer(RouterModel.from_store(store), arguments(max_steps=6), feedback=store)
    trainer.train()
    assert trainer.samples_without_answers == 1
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())


@pytest.mark.parametrize("inputs", [None, "auto"])
@pytest.mark.parametrize(("call", "after"), [(0, False), (1, False), (1, True), (2, False), (3, True), (4, True)])
def test_killed_at_any_moment_nothing_is_lost_or_doubled(fresh, dataset, collator, tmp_path, call, after, inputs):
    """A process that is killed at a file's renaming, before or after it, then a second one that goes on."""

    def write():
        scored(fresh(), dataset, collator, tmp_path / "s", router_inputs=inputs)

    killed_at_renaming(write, call, after=after)
    done = FeedbackStore(tmp_path / "s").ids.tolist() if (tmp_path / "s" / "manifest.json").exists() else []
    assert len(done) < len(MANY)
    again = scored(fresh(), dataset, collator, tmp_path / "s", router_inputs=inputs)
    whole = scored(fresh(), dataset, collator, tmp_path / "w", router_inputs=inputs)
    same_store(again, whole)
    rows = [i for path in (tmp_path / "s").glob("*.parquet") for i in pq.read_table(path)["id"].to_pylist()]
    assert sorted(rows) == list(range(len(MANY)))
    assert not list((tmp_path / "s").glob("*.tmp"))
    if inputs:
        for place in (0, 3, 9):
            for one, other in zip(again.inputs(place)[0], whole.inputs(place)[0], strict=True):
                torch.testing.assert_close(one.features, other.features)


def test_going_on_scores_only_what_is_missing(fresh, dataset, collator, tmp_path):
    flex, calls = fresh(), []

    class Counting(FlexCollator):
        def __call__(self, samples):
            calls.extend(sample.name for sample in samples)
            return super().__call__(samples)

    counting = Counting(collator.processor)
    scored(flex, dataset, counting, tmp_path)
    assert len(calls) == len(MANY)
    (tmp_path / "part-00000-00001.parquet").unlink()
    left = FeedbackStore(tmp_path)
    with pytest.raises(DataError, match=f"holds feedback for {len(left)} of 11 samples. Finish it"):
        left.require_complete()
    calls.clear()
    scored(flex, dataset, counting, tmp_path)
    assert len(calls) == len(MANY) - len(left)
    assert len(FeedbackStore(tmp_path)) == len(MANY)


def test_a_mismatch_says_what_differs(fresh, dataset, collator, tmp_path, arguments):
    flex = fresh()
    store = scored(flex, dataset, collator, tmp_path)
    other = fresh()
    with torch.no_grad():
        next(other.host.parameters()).add_(1.0)
    with pytest.raises(ConfigError, match=r"scored with something else: host\.weights: '\w+' stored, '\w+' now\. Go"):
        scored(other, dataset, collator, tmp_path)
    with pytest.raises(ConfigError, match=r"something else: host\.weights"):
        RGLFTrainer(other, arguments(), feedback=store, train_dataset=dataset, data_collator=collator)
    changes = {
        r"data\.rows: 11 stored, 10 now; data\.content": {"dataset": ChatDataset(MANY[:-1])},
        r"else: data\.content": {"dataset": ChatDataset([*MANY[1:], MANY[0]])},
        r"else: max_length: None stored, 4000 now": {"collator": FlexCollator(collator.processor, 4000)},
        r"else: precision: 'no' stored, 'bf16' now": {"precision": "bf16"},
        r"router_inputs: None stored, 'float32' now": {"router_inputs": "auto"},
        r"else: processor": {"collator": FlexCollator(tiny_llava_next_processor(shortest_edge=28))}
        if "shortest_edge" in tiny_llava_next_processor.__code__.co_varnames
        else {},
        r"scaler\.config\.windows": {
            "flex": fresh(scaler=tokenflex.scalers.get("average-pool").Config(windows=((2, 2), (1, 1))))
        },
    }
    for message, change in changes.items():
        if change:
            given = {"flex": flex, "dataset": dataset, "collator": collator} | change
            with pytest.raises(ConfigError, match=message):
                scored(given.pop("flex"), given.pop("dataset"), given.pop("collator"), tmp_path, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_from_the_store_is_live_training(processor, collator, dataset, tmp_path, arguments, dtype):
    """Step by step, in the same order of samples: live, with stored feedback, and without the host."""
    config = tokenflex.routers.get("avg").Config(dropout=0.1)

    def made():
        torch.manual_seed(0)
        return tokenflex.wrap(tiny_llava_next().to(dtype), router=config).train()

    store = scored(made(), dataset, collator, tmp_path / "s", router_inputs="auto", batch_size=1)
    assert store.manifest["router_inputs"] == str(dtype).removeprefix("torch.")
    start = {name: value.clone() for name, value in made().compressor.state_dict().items()}
    alone = RouterModel.from_store(store, router=config)
    alone.compressor.load_state_dict(start)
    runs = {
        "live": (made(), {"train_dataset": dataset, "data_collator": collator}),
        "feedback": (made(), {"train_dataset": dataset, "data_collator": collator, "feedback": store}),
        "alone": (alone, {"feedback": store}),
    }
    losses, ends = {}, {}
    for name, (model, given) in runs.items():
        settings = {"max_steps": 6, "per_device_train_batch_size": 2, "logging_strategy": "steps", "logging_steps": 1}
        trainer = RGLFTrainer(model, arguments(**settings, warmup_steps=0.0), **given)
        trainer.train()
        losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        ends[name] = model.compressor.state_dict()
    assert len(losses["live"]) == 6
    assert len(set(losses["live"])) > 1
    tight = 1e-6 if dtype == torch.float32 else 2e-2  # padding of other batches moves the bfloat16 host's own losses
    for name in ("feedback", "alone"):
        torch.testing.assert_close(losses[name], losses["live"], rtol=tight, atol=10 * tight)
    torch.testing.assert_close(losses["alone"], losses["feedback"], rtol=1e-6, atol=1e-6)
    for name, value in ends["feedback"].items():
        torch.testing.assert_close(ends["alone"][name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_neither_llm_nor_tower_run_with_a_store(fresh, dataset, collator, tmp_path, arguments, monkeypatch):
    flex = fresh()
    store = scored(flex, dataset, collator, tmp_path / "s", router_inputs="auto")
    monkeypatch.setattr(flex.host.model.language_model, "forward", lambda *a, **k: pytest.fail("the LLM ran"))
    RGLFTrainer(flex, arguments(), feedback=store, train_dataset=dataset, data_collator=collator).train()
    model = RouterModel.from_store(store)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"compressor"}
    RGLFTrainer(model, arguments(), feedback=store).train()


class Reader(Scaler):
    """Keeps the tokens that are looked at most, then those nearest to the words, by keys and by features."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        pass

    needs = frozenset({"attention", "keys", "instruction"})
    num_levels = 2

    def layouts(self, grid):
        return (max(grid.tokens // 2, 1), grid)

    def scale(self, tokens, level):
        words = tokens.instruction.embeddings.sum(-2)[..., None, None, :]
        score = tokens.attention + tokens.keys.float().norm(dim=-1) + (tokens.features * words).sum(-1).sigmoid()
        count = self.granularities(tokens.grid)[level]
        return selected(tokens, score.argsort(-1, descending=True)[..., :count])


def test_what_a_scaler_reads_besides_features_is_stored_with_them(dataset, collator, tmp_path):
    with scalers.temporary("reader", Reader), routers.temporary("own-mass", OwnMass):
        flex = tokenflex.wrap(tiny_llava_next(), scaler="reader", router="own-mass", voter="mean")
        store = scored(flex, dataset, collator, tmp_path / "s", router_inputs="auto", batch_size=3)
        alone = RouterModel.from_store(store, router="own-mass", voter="mean")
        rows = [place for place in range(len(MANY)) if dataset[place].images]
        stored = alone.encode(stored_batch([StoredRows(store)[place] for place in rows]))
        live = flex.encode(collator([dataset[place] for place in rows]))
        assert len(stored.images) == len(live.images) > len(rows)
        torch.testing.assert_close(alone.scores(stored), flex.scores(live))
        assert flex.scores(live).unique().numel() > 2
        for one, other in zip(stored.images, live.images, strict=True):
            torch.testing.assert_close(one.keys, other.keys)
            torch.testing.assert_close(one.instruction.embeddings, other.instruction.embeddings)


class OwnMass(Router):
    """How much of the tower's attention each level keeps."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        pass

    needs = frozenset({"attention"})

    def segments(self, grids):
        return (Grid(1, 1),)

    def forward(self, pyramid, instruction):
        kept = [(level.attention * (level.assignment >= 0)).sum(-1) for level in pyramid]
        return one_per_view(torch.stack(kept, dim=-1))


def test_parts_trained_alone_go_onto_the_host(fresh, dataset, collator, tmp_path, arguments):
    flex = fresh()
    store = scored(flex, dataset, collator, tmp_path / "s", router_inputs="auto")
    model = RouterModel.from_store(store, router="avg")
    trainer = RGLFTrainer(model, arguments(output_dir=str(tmp_path / "out"), save_strategy="steps", save_steps=1),
                          feedback=store)  # fmt: skip
    trainer.train()
    trainer.save_model()
    loaded = tokenflex.load_parts(tmp_path / "out", host=tiny_llava_next())
    for name, value in model.compressor.state_dict().items():
        assert torch.equal(loaded.compressor.state_dict()[name], value)
    again = RouterModel.from_parts(tmp_path / "out", store)
    resumed = RGLFTrainer(again, arguments(output_dir=str(tmp_path / "out"), max_steps=3), feedback=store)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert resumed.state.global_step == 3


def test_refusals(fresh, dataset, collator, tmp_path, arguments):
    flex = fresh()
    store = scored(flex, dataset, collator, tmp_path / "s")
    with pytest.raises(ConfigError, match="holds no router inputs"):
        RouterModel.from_store(store)
    with pytest.raises(ConfigError, match="holds no router inputs"):
        store.inputs(0)
    with pytest.raises(ConfigError, match="has no manifest"):
        FeedbackStore(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="router_inputs='int4'; use auto, float32"):
        scored(flex, dataset, collator, tmp_path / "t", router_inputs="int4")
    with pytest.raises(ConfigError, match="precision='int8'"):
        scored(flex, dataset, collator, tmp_path / "t", precision="int8")
    with pytest.raises(ConfigError, match="batch_size=0"):
        scored(flex, dataset, collator, tmp_path / "t", batch_size=0)
    full = scored(flex, dataset, collator, tmp_path / "u", router_inputs="auto")
    with pytest.raises(ConfigError, match="learns from a store alone"):
        RGLFTrainer(RouterModel.from_store(full), arguments())
    tokenflex.wrap(tiny_llava_next(), scaler=tokenflex.scalers.get("stride").Config()).save_parts(tmp_path / "p")
    with pytest.raises(ConfigError, match="has the scaler 'stride'"):
        RouterModel.from_parts(tmp_path / "p", full)
    (tmp_path / "u" / "manifest.json").write_text('{"format": 9}')
    with pytest.raises(ConfigError, match="format 9 isn't known"):
        FeedbackStore(tmp_path / "u")


def test_a_disk_that_is_too_small_is_refused_before_it_is_full(fresh, dataset, collator, tmp_path, monkeypatch):
    usage, said = shutil.disk_usage(tmp_path), []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=100_000))
    with pytest.raises(ConfigError, match=r"router inputs need about 0\.00 GiB for 11 samples \(0\.\d+ MiB each\)"):
        scored(fresh(), dataset, collator, tmp_path / "s", router_inputs="auto", say=said.append)
    assert not list((tmp_path / "s").glob("part-*"))
    monkeypatch.undo()
    store = scored(fresh(), dataset, collator, tmp_path / "s", router_inputs="auto", say=said.append)
    told = float(said[-1].split("(")[1].split(" MiB")[0])
    held = sum(path.stat().st_size for path in (tmp_path / "s").glob("*.safetensors")) / 2**20 / len(store)
    assert 0.5 * held < told < 2 * held


def test_chunks_and_workers_change_nothing(fresh, dataset, collator, tmp_path):
    one = scored(fresh(), dataset, collator, tmp_path / "a")
    same_store(scored(fresh(), dataset, collator, tmp_path / "b", vocabulary_chunk=7, workers=1, batch_size=3), one)


def test_doubled_rows_count_once(fresh, dataset, collator, tmp_path):
    store = scored(fresh(), dataset, collator, tmp_path)
    FeedbackWriter(tmp_path, 7).write([ScoredSample(2, [0.0] * 5, 1, [1] * 5)])
    same_store(FeedbackStore(tmp_path), store)


def test_two_passes_into_one_folder_take_turns(fresh, dataset, collator, tmp_path):
    """The second one comes while the first one is in the middle; nothing is scored twice and nothing is lost."""
    middle, waits, said, calls = threading.Event(), threading.Event(), [], []

    class First(FlexCollator):
        def __call__(self, samples):
            calls.extend(sample.name for sample in samples)
            if len(calls) > 4:
                middle.set()
                assert waits.wait(60)
            return super().__call__(samples)

    class Second(FlexCollator):
        def __call__(self, samples):
            raise AssertionError("everything is scored already")

    def told(line):
        said.append(line)
        waits.set()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(scored, fresh(), dataset, First(collator.processor), tmp_path)
        assert middle.wait(60)
        second = scored(fresh(), dataset, Second(collator.processor), tmp_path, say=told)
        same_store(first.result(), second)
    assert second.ids.tolist() == list(range(len(MANY)))
    assert said == [f"another process is scoring into {tmp_path}; waiting for its end"]
    assert len(calls) == len(MANY)


def test_rows_that_vanish_while_scoring_are_noticed(fresh, dataset, collator, tmp_path, monkeypatch):
    """As when another machine, which knows nothing of the lock, replaces a part."""
    write = FeedbackWriter.write

    def written(self, samples):
        write(self, samples)
        if self._shards.number == 3:
            (self.folder / "part-00000-00001.parquet").unlink()

    monkeypatch.setattr(FeedbackWriter, "write", written)
    with pytest.raises(DataError, match=r"holds feedback for 9 of 11 samples\. Finish it"):
        scored(fresh(), dataset, collator, tmp_path)
    monkeypatch.undo()
    assert len(scored(fresh(), dataset, collator, tmp_path)) == len(MANY)


def test_router_models_refuse_damaged_parts(fresh, dataset, collator, tmp_path):
    store = scored(fresh(), dataset, collator, tmp_path / "s", router_inputs="auto")
    model = RouterModel.from_store(store)
    model.save_parts(tmp_path / "sound")
    RouterModel.from_parts(tmp_path / "sound", store)
    changed = tmp_path / "sound" / "tokenflex.json"
    spec = json.loads(changed.read_text())
    spec["parts"]["router"]["config"]["text_tokens"] = 3
    changed.write_text(json.dumps(spec))
    with pytest.raises(ConfigError, match=r"tokenflex\.json says something else than tokenflex\.safetensors was"):
        RouterModel.from_parts(tmp_path / "sound", store)
    with torch.no_grad():
        next(model.compressor.router.parameters()).fill_(float("nan"))
    model.save_parts(tmp_path / "nan")
    with pytest.raises(ConfigError, match=r"tokenflex\.safetensors: NaN or infinite values in 'router"):
        RouterModel.from_parts(tmp_path / "nan", store)
