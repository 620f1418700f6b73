"""What a run spends and chooses stands beside its loss, and is right."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainerCallback

from tests.training.conftest import ROWS
from tokenflex.errors import ConfigError
from tokenflex.training import ChatDataset, FeedbackStore, FlexTrainer, RGLFTrainer, RouterModel, score
from tokenflex.training.watch import TrainingWatch, evaluated, judged_rows

LEVELS = [f"level_{level}" for level in range(5)]


class Keep(TrainerCallback):
    """Everything that is logged."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.logs.append(dict(logs))

    def of(self, name):
        return [entry for entry in self.logs if name in entry]


@pytest.fixture
def trained(fresh, arguments, collator):
    def make(stage, **others):
        keep = Keep()
        args = arguments(logging_strategy="steps", logging_steps=1, **others.pop("settings", {}))
        data = {"train_dataset": ChatDataset(ROWS), "eval_dataset": ChatDataset(ROWS), "data_collator": collator}
        trainer = FlexTrainer(fresh(), args, stage=stage, callbacks=[keep], **(data | others))
        trainer.train()
        return trainer, keep

    return make


def test_a_fixed_level_costs_what_it_costs(trained, fresh, collator):
    trainer, keep = trained(2, settings={"per_device_train_batch_size": 4, "max_steps": 1})
    (first,) = keep.of("loss")
    counts = trainer.model.encode(collator([ChatDataset(ROWS)[i] for i in range(4)])).counts.double()
    assert first["visual_tokens"] == pytest.approx(float(counts[:, -1].mean()))
    assert first["visual_tokens_share"] == 1
    assert not set(first) & {*LEVELS, "agreement"}


def test_all_levels_count_in_stage_3(trained, collator):
    trainer, keep = trained(3, settings={"per_device_train_batch_size": 4, "max_steps": 1})
    (first,) = keep.of("loss")
    counts = trainer.model.encode(collator([ChatDataset(ROWS)[i] for i in range(4)])).counts.double()
    assert first["visual_tokens"] == pytest.approx(float(counts.mean()))
    assert [first[name] for name in LEVELS] == pytest.approx([0.2] * 5)


def test_a_router_is_told_of_in_stage_4(trained, collator):
    """With accumulation: a log is of all images since the last one."""
    _, keep = trained(4, settings={"gradient_accumulation_steps": 2, "max_steps": 1, "learning_rate": 1e-3})
    (first,) = keep.of("loss")
    assert sum(first[name] for name in LEVELS) == pytest.approx(1)
    assert 0 < first["visual_tokens_share"] <= 1
    assert 0 <= first["agreement"] <= 1


def test_an_evaluation_tells_the_routers_regret(fresh, arguments, collator):
    """However the set is cut into batches, and by hand."""
    args, flex = arguments(per_device_eval_batch_size=3), fresh()
    trainer = FlexTrainer(flex, args, stage=4, eval_dataset=ChatDataset(ROWS), data_collator=collator)
    told = trainer.evaluate()
    trainer.args.per_device_eval_batch_size = 4
    again = trainer.evaluate()
    for name in ("visual_tokens", "agreement", "regret", "regret_tokens", *LEVELS):
        assert again[f"eval_{name}"] == pytest.approx(told[f"eval_{name}"], rel=1e-4, abs=1e-6), name
    flex, batch = trainer.model.eval(), collator([ChatDataset(ROWS)[i] for i in range(4)])
    with torch.no_grad():
        output = trainer.objective(flex, batch)
    chosen = output.scores.argmax(-1)
    assert told["eval_visual_tokens"] == pytest.approx(float(output.tokens[range(4), chosen].double().mean()))
    assert [told[f"eval_{name}"] for name in LEVELS] == [float((chosen == level).double().mean()) for level in range(5)]
    assert told["eval_agreement"] == float((output.feedback.argmin(-1) == chosen).double().mean())
    assert told["eval_regret"] >= -1e-9
    assert trainer.state.log_history[-1]["eval_regret"] == again["eval_regret"]


def test_a_router_alone_is_told_of_alike(fresh, arguments, collator, tmp_path):
    flex, folder = fresh(), tmp_path / "store"
    score(flex, ChatDataset(ROWS), collator, folder, router_inputs="auto", progress=False)
    store = FeedbackStore(folder)
    alone = RouterModel.from_store(store)
    alone.compressor.load_state_dict(flex.compressor.state_dict())
    live = FlexTrainer(flex, arguments(), stage=4, eval_dataset=ChatDataset(ROWS), data_collator=collator)
    stored = RGLFTrainer(alone, arguments(), feedback=store, eval_dataset=store)
    one, other = live.evaluate(), stored.evaluate()
    for name in ("loss", "visual_tokens", "visual_tokens_share", "agreement", *LEVELS):
        assert one[f"eval_{name}"] == pytest.approx(other[f"eval_{name}"], rel=1e-4), name
    # Two images of a row share its stored tokens, to the whole token.
    assert one["eval_regret"] == pytest.approx(other["eval_regret"], rel=0.05)


def test_a_perfect_router_has_no_regret():
    tokens, losses = torch.tensor([[4, 9, 16]] * 3), torch.tensor([[3.0, 2, 1], [1, 1, 1], [2, 1, 1.5]])
    best = {"tokens": tokens, "chosen": torch.tensor([[2], [0], [1]]), "feedback": losses, "scores": losses,
            "rows": torch.tensor([0, 1, 3])}  # fmt: skip
    told = evaluated([judged_rows(best, 4, 3)], 3)
    assert told["regret"] == pytest.approx(0)
    assert told["regret_tokens"] == pytest.approx(0)
    assert told["agreement"] == 1
    finest = best | {"chosen": torch.tensor([[2], [2], [2]])}
    assert evaluated([judged_rows(finest, 4, 3)], 3)["regret_tokens"] > 0


def test_the_best_metric_may_be_regret(trained):
    evaluates = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
                 "load_best_model_at_end": True}  # fmt: skip
    with pytest.raises(ConfigError, match=r"less regret is better.* greater_is_better=False"):
        trained(4, settings=evaluates | {"metric_for_best_model": "regret"})
    trainer, keep = trained(4, settings=evaluates | {"metric_for_best_model": "regret", "greater_is_better": False})
    assert trainer.state.best_metric == min(entry["eval_regret"] for entry in keep.of("eval_regret"))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=150), st.integers(1, 4))
def test_windows_are_means_over_images(sizes, processes):
    """However images are spread over batches and processes."""
    generator = torch.Generator().manual_seed(sum(sizes))
    watches, every, fine, picked = [TrainingWatch(3) for _ in range(processes)], [], [], []
    for i, size in enumerate(sizes):
        tokens = torch.randint(1, 50, (size, 3), generator=generator)
        chosen = torch.randint(0, 3, (size, 1), generator=generator)
        watches[i % processes].add({"tokens": tokens, "chosen": chosen})
        every += tokens.gather(1, chosen).flatten().tolist()
        fine += tokens[:, -1].tolist()
        picked += chosen.flatten().tolist()
    vectors = []
    for watch in watches[1:]:
        watch.figures(lambda vector: vectors.append(vector) or vector)
    told = watches[0].figures(lambda vector: sum(vectors, vector))
    if not every:
        assert told == {}
        return
    assert told["visual_tokens"] == pytest.approx(np.mean(every))
    assert told["visual_tokens_share"] == pytest.approx(sum(every) / sum(fine))
    if len(set(picked)) > 1:
        assert [told[f"level_{n}"] for n in range(3)] == pytest.approx(
            [picked.count(n) / len(picked) for n in range(3)]
        )
    assert watches[0].figures(lambda vector: vector) == {}


def test_rows_without_images_or_answers_count_for_nothing():
    assert evaluated([judged_rows({}, 3, 2)], 2) == {}
    assert evaluated([], 2) == {}
    unanswered = {"tokens": torch.tensor([[1, 4]]), "chosen": torch.tensor([[1]]), "scores": torch.zeros(1, 2),
                  "feedback": torch.full((1, 2), torch.nan), "rows": torch.tensor([0])}  # fmt: skip
    told = evaluated([judged_rows(unanswered, 1, 2)], 2)
    assert told == {"visual_tokens": 4, "visual_tokens_share": 1}


def test_trackers_get_them(trained, tmp_path, monkeypatch):
    """What is logged reaches tensorboard, where it is installed."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer, _ = trained(4, settings={"report_to": "tensorboard", "max_steps": 1})
    trainer.evaluate()
    read = EventAccumulator(str(tmp_path / "events"))
    read.Reload()
    tags = set(read.Tags()["scalars"])
    assert {"train/visual_tokens", "train/agreement", "train/level_0", "eval/regret", "eval/visual_tokens"} <= tags
