"""transformers' own ``Trainer`` on a FlexModel: the host's loss, gradients, columns and options."""

import datasets
import pytest
import torch
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

import tokenflex
from tokenflex.errors import InputError
from tokenflex.policies.constant import ConstantPolicy
from tokenflex.testing.tiny_hosts import tiny_llava_next


class Losses(Trainer):
    """Remembers the loss and the gradient norm of every step."""

    def training_step(self, model, inputs, *args, **kwargs):
        self.losses = [*getattr(self, "losses", []), float(super().training_step(model, inputs, *args, **kwargs))]
        return torch.tensor(self.losses[-1])


def rows(batch):
    made = [batch("<image> w1 w2 w9", first=2), batch("w3 <image> w8", first=2)]
    whole = []
    for inputs in made:
        ids = inputs["input_ids"]
        whole.append({**{k: v[0] for k, v in inputs.items()}, "labels": ids[0].masked_fill(ids[0] == 4, -100)})
    return whole


def collated(samples):
    assert len(samples) == 1
    return {key: torch.as_tensor(value)[None] for key, value in samples[0].items()}


def trained(model, data, tmp_path, **settings):
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2,
        report_to="none", save_strategy="no", learning_rate=0.0, use_cpu=True, max_grad_norm=1e9,
        logging_steps=1, **settings,
    )  # fmt: skip
    trainer = Losses(model, arguments, train_dataset=data, data_collator=collated)
    trainer.train()
    norm = next(entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry)
    return sum(trainer.losses), norm


def at_finest(host):
    return tokenflex.wrap(host, router="constant", voter="mean", policy=ConstantPolicy.Config(level=-1))


@pytest.mark.parametrize("first", ["a word", "an image"])
def test_loss_and_gradients_are_the_hosts(batch, tmp_path, first):
    """Also where a row's first label counts, which predicts nothing."""
    data = rows(batch)
    if first == "a word":
        data = [{**row, "labels": row["labels"].clone()} for row in data]
        assert any(int(row["labels"][0]) != -100 for row in data)
    expected = trained(tiny_llava_next(), data, tmp_path)
    found = trained(at_finest(tiny_llava_next()), data, tmp_path)
    assert found == pytest.approx(expected, rel=1e-5)


def test_columns_made_beforehand_are_kept(batch, tmp_path):
    data = rows(batch)
    columns = {key: [row[key].tolist() for row in data] for key in data[0]}
    made = datasets.Dataset.from_dict({**columns, "comment": ["a", "b"]}).with_format("torch")
    expected = trained(tiny_llava_next(), made, tmp_path)
    assert trained(at_finest(tiny_llava_next()), made, tmp_path) == pytest.approx(expected, rel=1e-5)


def test_labels_on_placeholders_are_refused_before_anything_is_counted(batch, tmp_path):
    data = [{**row, "labels": row["input_ids"].clone()} for row in rows(batch)]
    with pytest.raises(InputError, match=r"supervise \d+ image placeholders"):
        trained(at_finest(tiny_llava_next()), data, tmp_path)


def test_the_loss_is_of_the_hosts_type(host, flex):
    assert flex.loss_type == host.loss_type
    assert flex.loss_type is not None


def test_the_signature_names_the_hosts_inputs(flex, host):
    import inspect

    names = set(inspect.signature(flex.forward).parameters)
    assert set(inspect.signature(host.forward).parameters) - {"kwargs"} <= names
    assert {"level", "budget", "objective", "pixel_values", "image_sizes"} <= names
    assert "self" in inspect.signature(type(flex).forward).parameters


def metrics(prediction):
    logits, labels = prediction.predictions, prediction.label_ids
    told = labels[:, 1:] != -100
    return {"right": float((logits[:, :-1].argmax(-1) == labels[:, 1:])[told].mean()), "length": logits.shape[1]}


def outside(outputs, labels, num_items_in_batch=None):
    """The host's loss, computed by the caller."""
    flat = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(*flat, ignore_index=-100, reduction="sum")
    return loss / num_items_in_batch


def answered(batch):
    """Samples without a label that padding would predict."""
    data = rows(batch)
    for row in data:
        row["labels"][0] = -100
    return data


def at_level(level, align=None):
    flex = tokenflex.wrap(tiny_llava_next(), router="constant", voter="mean", policy=ConstantPolicy.Config(level=level))
    flex.config.align = align
    return flex


def test_noisy_embeddings(batch, tmp_path):
    """NEFTune: the words that the router reads are without noise, so the host's noise is the same."""
    data = rows(batch)
    found = []
    for model in (tiny_llava_next(), at_finest(tiny_llava_next())):
        torch.manual_seed(0)
        found.append(trained(model, data, tmp_path, neftune_noise_alpha=5.0))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    torch.manual_seed(0)
    assert found[0] != pytest.approx(trained(tiny_llava_next(), data, tmp_path), rel=1e-3)
    trained(at_level(1), data, tmp_path, neftune_noise_alpha=5.0)


def test_the_router_reads_words_without_noise(batch):
    from transformers.integrations.neftune import neftune_post_forward_hook

    flex, inputs = at_finest(tiny_llava_next()), batch("<image> w1 w2")
    expected = flex.encode(inputs).instructions[0].embeddings
    embed = flex.get_input_embeddings().train()
    embed.neftune_noise_alpha = 5.0
    embed.register_forward_hook(neftune_post_forward_hook)
    assert torch.equal(flex.encode(inputs).instructions[0].embeddings, expected)


@pytest.mark.parametrize("level", [0, -1])
def test_losses_computed_outside_the_model(batch, tmp_path, level):
    """Equal to those computed inside, once logits stand at the labels' positions."""
    data = answered(batch)
    expected = trained(at_level(level), data, tmp_path)
    found = Losses(
        at_level(level, "input"), settings_of(tmp_path), train_dataset=data, data_collator=collated,
        compute_loss_func=outside,
    )  # fmt: skip
    found.train()
    assert sum(found.losses) == pytest.approx(expected[0], rel=1e-4)
    smooth = trained(at_level(level, "input"), data, tmp_path, label_smoothing_factor=0.1)
    assert smooth[0] != pytest.approx(expected[0], rel=1e-3)


def settings_of(tmp_path, **settings):
    return TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2,
        report_to="none", save_strategy="no", learning_rate=0.0, use_cpu=True, max_grad_norm=1e9, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("settings", [{"label_smoothing_factor": 0.1}, {}])
def test_compact_logits_are_refused_to_losses_outside(batch, tmp_path, settings):
    other = {} if settings else {"compute_loss_func": outside}
    arguments = settings_of(tmp_path, **settings)
    trainer = Trainer(at_level(0), arguments, train_dataset=answered(batch), data_collator=collated, **other)
    with pytest.raises(
        InputError, match=r"the loss is computed outside the model .* Set flex\.config\.align = 'input'"
    ):
        trainer.train()


def test_metrics_early_stopping_and_the_best_checkpoint(batch, tmp_path):
    data = answered(batch)
    flex = at_level(0, "input")
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=1, per_device_eval_batch_size=2,
        report_to="none", learning_rate=0.0, use_cpu=True, eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, save_total_limit=1, load_best_model_at_end=True, metric_for_best_model="right",
    )  # fmt: skip
    trainer = Trainer(
        flex, arguments, train_dataset=data, eval_dataset=data[:1], data_collator=collated, compute_metrics=metrics,
        callbacks=[EarlyStoppingCallback(1)],
    )  # fmt: skip
    trainer.train()
    judged = [entry for entry in trainer.state.log_history if "eval_right" in entry]
    assert trainer.state.global_step == len(judged) == 2, "nothing improved, so training stopped"
    assert all(entry["eval_length"] == data[0]["input_ids"].shape[0] for entry in judged)
    logits = flex(**collated(data[:1]), align="input").logits
    expected = metrics(EvalPrediction(logits.detach().numpy(), data[0]["labels"][None].numpy()))
    assert judged[0]["eval_right"] == pytest.approx(expected["right"])


def test_answers_written_for_metrics(batch, tmp_path):
    data, flex = answered(batch), at_level(0)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=1, report_to="none", use_cpu=True,
        predict_with_generate=True, generation_config=GenerationConfig(max_new_tokens=3),
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        flex, arguments, data_collator=collated, compute_metrics=lambda found: {"n": len(found.predictions)}
    )
    found = trainer.predict(data[:1])
    inputs = {name: value for name, value in collated(data[:1]).items() if name != "labels"}
    expected = flex.generate(**inputs, max_new_tokens=3)
    assert found.predictions.tolist() == expected.tolist()
    assert found.metrics["test_loss"] == pytest.approx(flex(**collated(data[:1])).loss.item(), rel=1e-5)
