"""transformers' own ``Trainer`` on a FlexModel: the host's loss, gradients and columns."""

import datasets
import pytest
import torch
from transformers import Trainer, TrainingArguments

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
