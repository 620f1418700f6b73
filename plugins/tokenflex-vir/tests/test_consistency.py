"""The consistency loss against independent computations, its draw, its place in training."""

import copy

import pytest
import torch

import tokenflex
from tokenflex.errors import ConfigError
from tokenflex.training import STAGES, FlexTrainer, FlexTrainingArguments
from tokenflex_vir import ConsistencyObjective
from tokenflex_vir.answers import divergence
from tokenflex_vir.consistency import seed_of

POOLED = {"scaler": "average-pool"}
"""Five levels."""


def log_probabilities(flex, batch, levels):
    """At the positions that predict answers, through the model's public ``forward``, row by row."""
    prompt = {key: value for key, value in batch.items() if key != "labels"}
    spliced, _ = flex.prepare(batch, levels, padding_side="right")
    logits, labels = flex(**prompt, level=levels).logits, spliced.inputs["labels"]
    rows = []
    for row in range(len(labels)):
        for place in range(labels.shape[1] - 1):
            if labels[row, place + 1] != -100:
                here = logits[row, place].exp()
                rows.append((here / here.sum()).log())
    return torch.stack(rows)


def by_hand(wanted, given):
    """KL position by position and word by word."""
    total = 0.0
    for p, q in zip(wanted.tolist(), given.tolist(), strict=True):
        total += sum(torch.tensor(a).exp().item() * (a - b) for a, b in zip(p, q, strict=True))
    return total / len(wanted)


def test_divergence_by_hand():
    # p = (1/2, 1/2), q = (1/4, 3/4): 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3) = 0.1438.
    found = divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.25, 0.75]]).log())
    torch.testing.assert_close(found, torch.tensor([0.5 * torch.tensor(4 / 3).log().item()]))
    assert divergence(torch.tensor([[3.0, 1.0]]), torch.tensor([[5.0, 3.0]])).abs().item() < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("parts", [{}, POOLED], ids=["two-rates", "average-pool"])
def test_all_levels_against_the_finest(fresh, training_batch, parts):
    flex = fresh(**parts)
    batch = training_batch(flex)
    found = ConsistencyObjective(levels="all")(flex, batch)
    finest = flex.compressor.num_levels - 1
    wanted = log_probabilities(flex, batch, finest)
    expected = [by_hand(wanted, log_probabilities(flex, batch, level)) for level in range(finest)]
    assert found.loss.item() == pytest.approx(sum(expected) / finest, rel=1e-3)
    assert found.loss.item() > 0
    assert found.levels.tolist() == [[level] * 4 for level in range(finest)]


@torch.no_grad()
def test_levels_are_drawn_per_image(fresh, training_batch):
    flex = fresh(**POOLED)
    batch = training_batch(flex)
    found = ConsistencyObjective(seed=3)(flex, batch)
    drawn = found.levels[0].tolist()
    wanted, given = (log_probabilities(flex, batch, levels) for levels in (4, drawn))
    assert found.loss.item() == pytest.approx(by_hand(wanted, given), rel=1e-3)
    language = [flex(**batch, level=drawn).loss.item(), found.language.item()]
    assert language[0] == pytest.approx(language[1], rel=1e-4)


@torch.no_grad()
def test_cross_entropy_is_added_when_asked_for(fresh, training_batch):
    flex = fresh()
    batch = training_batch(flex)
    found = ConsistencyObjective(weight=0.5, levels="all")(flex, batch)
    plain = ConsistencyObjective(levels="all")(flex, batch)
    assert found.loss.item() == pytest.approx(plain.loss.item() + 0.5 * flex(**batch, level=0).loss.item(), rel=1e-4)


@torch.no_grad()
def test_a_reference_is_another_model(fresh, training_batch):
    flex = fresh()
    batch, reference = training_batch(flex), copy.deepcopy(flex).train()
    for parameter in flex.host.parameters():
        parameter.mul_(0.9)
    found = ConsistencyObjective(reference, levels="all")(flex, batch)
    assert not reference.training
    wanted = log_probabilities(reference, batch, 1)
    expected = [by_hand(wanted, log_probabilities(flex, batch, level)) for level in (0, 1)]
    assert found.loss.item() == pytest.approx(sum(expected) / 2, rel=1e-3)
    assert found.levels.tolist() == [[0] * 4, [1] * 4]


def test_no_gradients_through_the_reference(fresh, training_batch):
    """The gradient is that of the drawn levels' predictions towards a constant."""
    one, other = fresh().train(), fresh().train()
    batch = training_batch(one)
    one(**batch, objective=ConsistencyObjective(levels="all")).loss.backward()
    with torch.no_grad():
        wanted = log_probabilities(other, batch, 1)
    given = log_probabilities(other, batch, 0)
    (wanted.exp() * (wanted - given)).sum(-1).mean().backward()
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-2, msg=name)


@torch.no_grad()
def test_words_that_cannot_be_answers_are_left_out(fresh, training_batch, monkeypatch):
    flex = fresh()
    batch, whole = training_batch(flex), ConsistencyObjective(levels="all")
    before = whole(flex, batch).loss.item()
    monkeypatch.setattr(type(flex.adapter), "vocabulary", 32)
    wanted, given = (log_probabilities(flex, batch, level)[:, :32] for level in (1, 0))
    found = whole(flex, batch).loss.item()
    assert found == pytest.approx(by_hand(wanted.log_softmax(-1), given.log_softmax(-1)), rel=1e-3)
    assert found != pytest.approx(before, rel=1e-3)


def test_the_draw_depends_on_seed_and_words_alone(fresh, training_batch):
    flex = fresh(**POOLED)
    batch = training_batch(flex)
    drawn = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        with torch.no_grad():
            drawn.append(ConsistencyObjective()(flex, batch).levels.tolist())
        assert torch.equal(torch.random.get_rng_state(), before)
    assert drawn[0] == drawn[1]
    seeds = {seed_of(seed, batch["input_ids"] + more) for seed in range(4) for more in range(4)}
    assert len(seeds) == 16


def test_every_level_is_drawn_as_often(fresh, training_batch):
    flex = fresh(**POOLED)
    batch = training_batch(flex)
    counts = torch.zeros(5)
    for seed in range(200):
        levels = ConsistencyObjective(seed=seed)._levels(flex, batch, 4)
        assert levels.shape == (1, 4)
        counts += torch.bincount(levels[0], minlength=5)
    assert float(counts.min()) > 0.15 * float(counts.sum())


def test_without_a_reference_something_is_compressed(fresh, training_batch):
    flex = fresh()
    batch = training_batch(flex)
    alone = [ConsistencyObjective(seed=seed)._levels(flex, batch, 1).item() for seed in range(30)]
    assert alone == [0] * 30
    kept = ConsistencyObjective(copy.deepcopy(flex))
    assert {ConsistencyObjective(kept.reference, seed=s)._levels(flex, batch, 1).item() for s in range(30)} == {0, 1}


def test_parameters_are_used_even_where_nothing_is_compressed(fresh, training_batch):
    """Or processes that compress something would wait for this one's gradients."""
    flex = fresh().train()
    batch, reference = training_batch(flex, rows=[[1, "image", 2, 3]]), copy.deepcopy(flex)
    drawn = {}
    for seed in range(10):
        objective = ConsistencyObjective(reference, seed=seed)
        drawn.setdefault(objective._levels(flex, batch, 1).item(), objective)
    found = flex(**batch, objective=drawn[1])
    assert found.levels.tolist() == [[1]]
    assert found.loss.item() == pytest.approx(0.0, abs=1e-6)
    found.loss.backward()
    assert all(p.grad is not None for p in flex.compressor.scaler.parameters())


@pytest.mark.parametrize("levels", ["drawn", "all"])
def test_no_answers_are_a_zero_of_the_graph_never_nan(fresh, training_batch, levels):
    flex = fresh().train()
    batch = training_batch(flex)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = flex(**batch, objective=ConsistencyObjective(levels=levels, weight=1.0)).loss
    assert loss.item() == 0.0
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in flex.parameters() if p.grad is not None)


def test_batches_without_images(fresh, training_batch):
    flex = fresh().train()
    batch = training_batch(flex, rows=[[1, 2, 3, 4], [5, 6, 7]])
    found = flex(**batch, objective=ConsistencyObjective(weight=1.0))
    assert found.consistency.item() == pytest.approx(0.0, abs=1e-6)
    assert found.loss.item() == pytest.approx(flex.host(**batch).loss.item(), rel=1e-4)


@torch.no_grad()
def test_sums_over_the_items_of_a_step(fresh, training_batch):
    """Two halves of a batch, each divided by the answers of both, add up to the batch."""
    flex = fresh()
    objective, rows = ConsistencyObjective(levels="all", weight=1.0), [[1, "image", 2, 3], ["image", 4, 5, 6, 7]]
    whole = objective(flex, training_batch(flex, rows)).loss.item()
    halves = [training_batch(flex, rows[i : i + 1], first=i) | {"num_items_in_batch": 4} for i in (0, 1)]
    assert sum(objective(flex, half).loss.item() for half in halves) == pytest.approx(whole, rel=1e-4)


def test_stage_three_of_the_trainer(fresh, training_batch, tmp_path):
    """One run straight through, one stopped and resumed: the same weights, as the same levels are drawn."""
    rows = [[1, "image", 2, 3], ["image", 4, 5], [6, "image", 7, 8], ["image", 9, 10]]

    def trained(folder, steps, resume=None):
        flex = fresh(**POOLED).train()
        arguments = FlexTrainingArguments(
            output_dir=str(tmp_path / folder), use_cpu=True, max_steps=4, per_device_train_batch_size=1, seed=3,
            save_strategy="steps", save_steps=2, logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
            warmup_steps=0.0,
        )  # fmt: skip
        stage = STAGES[3].with_rates(vision_tower=1e-3, projector=1e-3, language_model=1e-3)
        trainer = FlexTrainer(
            flex, arguments, stage=stage, objective=ConsistencyObjective(), train_dataset=list(range(4)),
            data_collator=lambda picked: training_batch(flex, [rows[i] for i in picked], first=picked[0]),
            callbacks=[stopping_after(steps)],
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return {name: p.detach().clone() for name, p in flex.named_parameters()}

    expected = trained("whole", 4)
    trained("stopped", 2)
    found = trained("stopped", 4, resume=str(tmp_path / "stopped" / "checkpoint-2"))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def stopping_after(steps):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= steps

    return Stop()


def test_refusals(fresh, training_batch):
    flex = fresh()
    with pytest.raises(ConfigError, match="levels='some'; use one of drawn, all"):
        ConsistencyObjective(levels="some")
    with pytest.raises(ConfigError, match=r"weight=-1\.0 must be a finite number"):
        ConsistencyObjective(weight=-1.0)
    with pytest.raises(ConfigError, match="the reference is the model in training itself"):
        ConsistencyObjective(flex)(flex, training_batch(flex))
    single = fresh(scaler=tokenflex.scalers.get("average-pool").Config(windows=((2, 2),)))
    with pytest.raises(ConfigError, match="this scaler has a single level"):
        ConsistencyObjective()(single, training_batch(single))
