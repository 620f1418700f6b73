"""From a fresh assembly to a trained one: consistency, then the gate, then generating."""

import copy
import math

import pytest
import torch

import tokenflex
from tokenflex.errors import ConfigError, InputError
from tokenflex.testing.zoo.hosts import ZOO
from tokenflex.training import STAGES, FlexTrainer, FlexTrainingArguments
from tokenflex_vir import ConsistencyObjective, GateObjective, RunningQuantile, gate_loss, loss_ratio, vir_targets
from tokenflex_vir.answers import answers, divergence


def steps(flex, parameters, objective, batch, count, rate):
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    found = []
    for _ in range(count):
        optimizer.zero_grad()
        output = flex(**batch, objective=objective)
        output.loss.backward()
        optimizer.step()
        found.append(output.loss.item())
    return found


@pytest.mark.parametrize("frozen", [True, False], ids=["a frozen reference", "its own finest level"])
def test_consistency_learns(fresh, training_batch, frozen):
    flex = fresh().train()
    batch, reference = training_batch(flex), copy.deepcopy(flex) if frozen else None
    before = {name: p.detach().clone() for name, p in flex.compressor.scaler.named_parameters()}
    losses = steps(flex, flex.parameters(), ConsistencyObjective(reference, levels="all"), batch, 15, 2e-3)
    assert losses[-1] < 0.5 * losses[0]
    assert all(not torch.equal(p, before[name]) for name, p in flex.compressor.scaler.named_parameters())


def test_the_whole_way(fresh, training_batch, prompt, tmp_path):
    flex = fresh().train()
    batch, reference = training_batch(flex), copy.deepcopy(flex)

    # 1. The model learns to predict with fewer tokens what it predicted with all.
    losses = steps(flex, flex.parameters(), ConsistencyObjective(reference, levels="all"), batch, 8, 2e-3)
    assert losses[-1] < losses[0]

    # 2. Labels from the losses of rows, and the gate learns them.
    flex.eval()
    with torch.no_grad():
        encoded = flex.encode(batch)
        everything = answers(reference, batch, reference.encode(batch), [1] * 4)
        both = [answers(flex, batch, encoded, [level] * 4) for level in (0, 1)]
        coarse, fine = (one.per_row(divergence(everything.logits, one.logits)) for one in both)
    running = RunningQuantile(0.5)
    running.update(loss_ratio(coarse, fine))
    targets = vir_targets(coarse, fine, running.value)[[image.row for image in encoded.images]]
    assert set(targets.tolist()) == {0.0, 1.0}
    router = flex.compressor.router
    optimizer = torch.optim.AdamW(router.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = gate_loss(flex.scores(encoded), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]

    # 3. Decisions are the labels now, and generating follows them.
    decisions = flex.decide(**prompt(flex))
    assert [float(decision.level) for decision in decisions] == targets.tolist()
    output = flex.generate(**prompt(flex), max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    assert [decision.level for decision in output.decisions] == [decision.level for decision in decisions]
    assert [d.tokens for d in decisions] == [d.of if d.level else d.of // 4 for d in decisions]

    # 4. And so does what was saved.
    flex.save_parts(tmp_path)
    again = tokenflex.load_parts(tmp_path, host=flex.host)
    same = again.generate(**prompt(flex), max_new_tokens=3, do_sample=False)
    assert torch.equal(same, output.sequences)


def test_the_gate_in_stage_four(fresh, training_batch, tmp_path):
    """Exactly the router is trained, on what the objective finds out by itself."""
    flex = fresh().train()
    reference = copy.deepcopy(flex)
    for parameter in flex.host.parameters():
        parameter.data.mul_(0.97)
    batch, objective = training_batch(flex), GateObjective(RunningQuantile(0.5, window=64), reference)
    arguments = FlexTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, max_steps=12, per_device_train_batch_size=3, warmup_steps=0.0,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    stage = STAGES[4].with_rates(router=5e-3)
    trainer = FlexTrainer(
        flex, arguments, stage=stage, objective=objective, train_dataset=[0, 1, 2], data_collator=lambda picked: batch
    )
    before = {name: p.detach().clone() for name, p in flex.named_parameters()}
    with torch.no_grad():
        first = flex(**batch, objective=objective)
    assert first.loss.item() == pytest.approx(torch.tensor(2.0).log().item())
    trainer.train()
    with torch.no_grad():
        last = flex(**batch, objective=objective)
    assert torch.equal(last.targets, first.targets)
    assert last.loss.item() < 0.7 * first.loss.item()
    assert not flex.host.training
    changed = {name.split(".")[1] for name, p in flex.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"router"}


def test_the_gates_objective_by_parts(fresh, training_batch):
    """Ratios of rows with all images at one level; without a reference, rows rank by their loss at the coarse level."""
    flex = fresh()
    batch = training_batch(flex)
    per_row = []
    for row in range(3):
        labels = torch.full_like(batch["labels"], -100)
        labels[row] = batch["labels"][row]
        with torch.no_grad():
            alone = ConsistencyObjective(levels="all")(flex, batch | {"labels": labels})
        per_row.append(alone.loss.item())
    running = RunningQuantile(0.5)
    found = GateObjective(running)(flex, batch)
    middle = sorted(per_row)[1]
    assert found.targets.tolist() == [float(per_row[row] >= middle) for row in (0, 1, 1, 2)]
    torch.testing.assert_close(running.values[-3:], torch.tensor(per_row) / 1e-6, rtol=1e-3, atol=0.0)


def test_rows_without_answers_or_images(fresh, training_batch):
    flex = fresh()
    batch = training_batch(flex)
    batch["labels"][1] = -100
    found = GateObjective(RunningQuantile(0.5))(flex, batch)
    assert found.targets.isnan().tolist() == [False, True, True, False]
    assert bool(found.loss.isfinite())
    text = GateObjective(RunningQuantile(0.5))(flex, training_batch(flex, rows=[[1, 2, 3]]))
    assert text.loss.item() == 0.0
    assert text.loss.requires_grad


def test_the_gate_needs_two_levels(fresh, training_batch):
    flex = fresh(scaler="average-pool")
    with pytest.raises(ConfigError, match="between 2 levels, and this scaler has 5"):
        GateObjective(RunningQuantile(0.5))(flex, training_batch(flex))


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["internvl", "cohere2_vision"])
def test_a_fresh_assembly_keeps_all_tokens(fresh, prompt, model_type):
    flex = fresh(model_type)
    inputs = prompt(flex)
    assert all(decision.tokens == decision.of for decision in flex.decide(**inputs))
    expected = flex.host.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(flex.generate(**inputs, max_new_tokens=3, do_sample=False), expected)


@torch.no_grad()
def test_tiles_that_are_images_are_routed_one_by_one(fresh, prompt):
    flex = fresh("cohere2_vision")
    torch.nn.init.normal_(flex.compressor.router.mlp[-1].weight)
    assert all(len(image.features) == 1 for image in flex.encode(prompt(flex)).images)
    assert {decision.level for decision in flex.decide(**prompt(flex))} == {0, 1}


def test_a_quantile_limits_how_many_images_of_a_request_stay_fine(fresh, prompt):
    policy = tokenflex.policies.get("quantile-gate").Config(threshold=0.0, quantile=0.75)
    flex = fresh(policy=policy)
    torch.nn.init.normal_(flex.compressor.router.mlp[-1].weight)
    rows = [image.row for image in flex.encode(prompt(flex)).images]
    levels = [decision.level for decision in flex.decide(**prompt(flex))]
    for row in set(rows):
        mine = [level for level, at in zip(levels, rows, strict=True) if at == row]
        assert sum(mine) == math.ceil(0.25 * len(mine))


@torch.no_grad()
def test_under_autocast(fresh, training_batch):
    flex = fresh()
    batch = training_batch(flex)
    plain = ConsistencyObjective(levels="all")(flex, batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        found = ConsistencyObjective(levels="all")(flex, batch).loss
        assert bool(GateObjective(RunningQuantile(0.5))(flex, batch).loss.isfinite())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain, rtol=0.3, atol=0.0)


@torch.no_grad()
def test_parts_in_float32_beside_a_host_in_half_precision():
    flex = tokenflex.wrap(ZOO["internvl"].build().bfloat16(), scaler="two-rates", router="tile-gate", voter="mean")
    batch = ZOO["internvl"].batch(flex.host.config, [[1, "image", 2]])
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    encoded = flex.encode(batch)
    scaled = flex.compressor.scale(encoded.images, [0])[0]
    assert scaled.features.dtype == torch.bfloat16
    assert flex.scores(encoded).dtype == torch.float32


def test_an_image_that_cannot_be_judged_is_named(fresh, training_batch, prompt):
    flex = fresh()
    for batch, call in ((training_batch(flex), None), (prompt(flex), flex.decide)):
        batch["pixel_values"][1] = torch.nan
        with pytest.raises(InputError, match=r"image 1 \(row 1 of the batch\): features or scores are NaN"):
            call(**batch) if call else flex(**batch, objective=GateObjective(RunningQuantile(0.5)))


def test_a_step_of_the_gate_is_a_mean_over_all_its_images(fresh, training_batch):
    """Images that can have a label are known before they are encoded; batches of a step add up."""
    flex, objective = fresh(), GateObjective(RunningQuantile(0.5))
    batch = training_batch(flex)
    assert objective.count(flex, batch) == 4
    labels = batch["labels"].clone()
    labels[0] = -100
    lost = sum(row == 0 for row in flex.adapter.read(batch).rows)
    assert objective.count(flex, {**batch, "labels": labels}) == 4 - lost
    scores, targets = torch.randn(5, 2), torch.tensor([0.0, 1.0, float("nan"), 1.0, 0.0])
    parts = [gate_loss(scores[a:b], targets[a:b], torch.tensor(4)) for a, b in ((0, 1), (1, 3), (3, 5))]
    torch.testing.assert_close(sum(parts), gate_loss(scores, targets))
    with torch.no_grad():
        assert flex(**batch, num_items_in_batch=8, objective=objective).loss.item() == pytest.approx(
            flex(**batch, objective=GateObjective(RunningQuantile(0.5))).loss.item() / 2
        )
