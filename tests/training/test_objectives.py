"""What each stage minimises, against independent computations."""

import pytest
import torch

from tests.training.conftest import ROWS
from tokenflex.errors import InputError
from tokenflex.training import STAGES, ChatDataset, LanguageObjective, MultiGranularityObjective, RGLFObjective
from tokenflex.training.stages import select


@pytest.fixture
def flex(fresh):
    return fresh(router="avg").eval()


def calls(monkeypatch, module, name):
    seen = []
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: (seen.append(1), original(*args, **kwargs))[1])
    return seen


def test_stage_one_is_the_hosts_own_loss(flex, training_batch):
    with torch.no_grad():
        expected = flex.host(**training_batch).loss
        found = flex(**training_batch, objective=LanguageObjective()).loss
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)


def test_stage_three_is_the_mean_of_the_levels_losses(flex, training_batch):
    with torch.no_grad():
        expected = torch.stack([flex(**training_batch, level=level).loss for level in range(5)])
        found = flex(**training_batch, objective=MultiGranularityObjective())
    torch.testing.assert_close(found.level_losses, expected)
    assert found.levels == (0, 1, 2, 3, 4)
    torch.testing.assert_close(found.loss, expected.mean())
    assert len(set(expected.tolist())) == 5


def test_stage_three_has_the_joint_graphs_gradients(fresh, training_batch):
    one, other = fresh(), fresh()
    one(**training_batch, objective=MultiGranularityObjective()).loss.backward()
    torch.stack([other(**training_batch, level=level).loss for level in range(5)]).mean().backward()
    for (name, p), q in zip(one.host.named_parameters(), other.host.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_feedback_is_each_rows_answer_loss_at_each_level(flex, training_batch):
    found = flex(**training_batch, objective=RGLFObjective()).feedback
    rows = [0, 1, 3, 3]
    with torch.no_grad():
        for level in range(5):
            spliced, _ = flex.prepare(training_batch, level)
            labels = spliced.inputs.pop("labels")
            logits = flex.host(**spliced.inputs).logits
            for image, row in enumerate(rows):
                target = labels[row, 1:]
                lines = logits[row, :-1][target != -100].log_softmax(-1)
                expected = -lines.gather(-1, target[target != -100][:, None]).mean()
                torch.testing.assert_close(found[image, level], expected)


@pytest.mark.parametrize("objective", [LanguageObjective(), MultiGranularityObjective(), RGLFObjective()])
def test_the_vision_tower_runs_once_per_step(flex, training_batch, monkeypatch, objective):
    seen = calls(monkeypatch, flex.host.model.vision_tower, "forward")
    flex(**training_batch, objective=objective)
    assert len(seen) == 1


@pytest.mark.parametrize("objective", [LanguageObjective(), MultiGranularityObjective(), RGLFObjective()])
def test_no_answers_are_a_zero_of_the_graph_never_nan(fresh, training_batch, objective):
    flex = fresh()
    batch = training_batch | {"labels": torch.full_like(training_batch["labels"], -100)}
    loss = flex(**batch, objective=objective).loss
    assert loss.item() == 0.0
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in flex.parameters() if p.grad is not None)


def test_rows_without_answers_do_not_disturb_the_others(fresh, training_batch):
    labels = training_batch["labels"].clone()
    labels[1] = -100
    whole = fresh()(**training_batch | {"labels": labels}, objective=RGLFObjective())
    assert bool(whole.loss.isfinite())
    assert whole.feedback.isnan().any(-1).tolist() == [False, True, False, False]


def test_stage_four_leaves_the_host_in_evaluation_mode(fresh, training_batch):
    flex = fresh()
    flex(**training_batch, objective=RGLFObjective())
    assert not flex.host.training
    assert flex.compressor.training


def test_text_only_batches_have_a_loss(fresh, collator):
    batch = collator([ChatDataset(ROWS)[2]])
    flex = fresh()
    plain = flex.host(**batch).loss
    torch.testing.assert_close(flex(**batch, objective=MultiGranularityObjective()).loss, plain)
    loss = flex(**batch, objective=RGLFObjective()).loss
    assert loss.item() == 0.0
    assert loss.requires_grad


@pytest.mark.parametrize("guard", [True, False])
def test_images_are_counted_before_they_are_encoded(fresh, training_batch, guard):
    labels = training_batch["labels"].clone()
    labels[3] = -100
    batch, flex = training_batch | {"labels": labels}, fresh()
    assert RGLFObjective(guard=guard).count(flex, batch) == (2 if guard else 4)
    stored = torch.rand(4, 5)
    stored[0] = float("nan")
    assert RGLFObjective(guard=guard).count(flex, batch | {"feedback": stored}) == (3 if guard else 4)
    text = {key: value[2:3] for key, value in batch.items() if key in ("input_ids", "attention_mask", "labels")}
    assert RGLFObjective(guard=guard).count(flex, text) == 0


def test_scores_that_are_no_numbers_are_an_error_that_names_the_row(fresh, training_batch):
    pixels = training_batch["pixel_values"].clone()
    pixels[1] = float("nan")
    with pytest.raises(InputError, match=r"for image 1 \(row 1 of the batch\)"):
        fresh()(**training_batch | {"pixel_values": pixels}, objective=RGLFObjective())


@pytest.mark.parametrize("objective", [LanguageObjective(), MultiGranularityObjective()])
def test_rows_without_images_train_a_projector_by_nothing(fresh, collator, objective):
    """Their loss counts, and has a gradient: zero."""
    flex, batch = fresh(), collator([ChatDataset(ROWS)[2]])
    select(flex, STAGES[1])
    loss = flex(**batch, objective=objective).loss
    assert loss.item() > 0
    loss.backward()
    trained = [p for p in flex.parameters() if p.requires_grad]
    assert trained
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in trained)
