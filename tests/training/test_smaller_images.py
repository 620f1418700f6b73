"""Training where every level has an image of its own: gradients reach the tower, feedback is the stored one."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.hosts.served import served
from tests.model.smaller import assembled, batch_of, plain_inputs, watched
from tests.training.test_levels import gradients, same
from tokenflex.errors import ConfigError
from tokenflex.hosts.targets import shifted, target_losses
from tokenflex.scalers.resolution import ResolutionScaler
from tokenflex.testing.host_bench import labels_of
from tokenflex.testing.zoo.hosts import ZOO
from tokenflex.testing.zoo.recipe import AN_IMAGE
from tokenflex.training import (
    STAGES,
    FlexTrainer,
    LanguageObjective,
    MultiGranularityTrainer,
    RGLFObjective,
    RGLFTrainer,
    RouterModel,
    score,
)
from tokenflex.training.router_only import StoredRows, stored_batch
from tokenflex.training.stages import parameter_groups, select

POOLED = ResolutionScaler.Config(shares=(0.25, 0.25, 1.0, 1.0), pooling=((2, 2), (1, 1), (2, 1), (1, 1)))
ROUTER = {"router": "avg", "voter": "position-weighted"}


def made(name="qwen2_5_vl", stage=3, **parts):
    served(name)
    flex = assembled(name, **parts)
    select(flex, STAGES[stage])
    inputs = batch_of(flex, side="right")
    return flex, {**inputs, "labels": labels_of(inputs)}


def plain_loss(flex, batch, level):
    """The unmodified host's loss on smaller images."""
    inputs = plain_inputs(flex, batch, [level] * 3)
    labels = inputs.pop("labels")
    return target_losses(flex.host, inputs, shifted(labels), flex.adapter.vocabulary).mean()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_gradients_are_those_of_the_host_on_every_smaller_image(name):
    flex, batch = made(name)
    found = gradients(flex, batch, memory="joint")
    flex.zero_grad(set_to_none=True)
    loss = torch.stack([plain_loss(flex, batch, level) for level in range(5)]).mean()
    loss.backward()
    expected = {n: p.grad for n, p in flex.named_parameters() if p.grad is not None}
    tower = {id(p) for p in flex.adapter.parameter_groups()["vision_tower"]}
    reached = [n for n, p in flex.named_parameters() if id(p) in tower and bool((p.grad != 0).any())]
    assert len(reached) > 5
    same(found, (loss.detach(), expected))


@pytest.mark.parametrize("scaler", ["resolution", POOLED], ids=["resolution", "pooled too"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "exaone4_5"])
def test_all_ways_have_the_same_gradients(name, scaler):
    flex, batch = made(name, scaler=scaler)
    expected = gradients(flex, batch, memory="joint")
    same(gradients(flex, batch, memory="low"), expected)
    if not flex.adapter.packing_refusal:
        same(gradients(flex, batch, memory="packed"), expected)


@pytest.mark.parametrize(("memory", "calls"), [("joint", 2), ("low", 4)])
def test_a_image_is_encoded_once_per_graph(memory, calls):
    flex, batch = made(scaler=POOLED)
    with watched(flex) as seen:
        gradients(flex, batch, memory=memory)
    assert len(seen.patches) == calls


def test_the_language_loss_looks_at_whole_images_only():
    flex, batch = made(stage=1)
    with watched(flex) as seen:
        loss = flex(**batch, objective=LanguageObjective()).loss
    torch.testing.assert_close(loss, flex.host(**batch).loss)
    assert seen.patches == [len(batch["pixel_values"])]


def test_live_feedback_is_the_losses_on_every_smaller_image():
    flex, batch = made(stage=4)
    output = flex(**batch, objective=RGLFObjective())
    output.loss.backward()
    groups = parameter_groups(flex)
    reached = [name for name, some in groups.items() if any(p.grad is not None for p in some)]
    assert reached == ["router"]
    one = ((1, 3, AN_IMAGE, 5, 7),)
    inputs = batch_of(flex, one, side="right")
    alone = {**inputs, "labels": labels_of(inputs)}
    feedback = flex(**alone, objective=RGLFObjective()).feedback[0]
    with torch.no_grad():
        plain = [flex.host(**{**plain_inputs(flex, alone, [level])}).loss for level in range(5)]
    torch.testing.assert_close(feedback, torch.stack(plain))


class Samples:
    """Rows of words and images as a data set, one image's number per row."""

    rows = ((1, 3, AN_IMAGE, 5, 7), (AN_IMAGE, 9, 11), (2, 13, 15), (4, AN_IMAGE, 17, 19, AN_IMAGE, 21))
    first = (0, 1, 2, 2)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place], self.first[place]


def collator(flex):
    def collate(samples):
        batches = [batch_of(flex, (row,), first=first, side="right") for row, first in samples]
        length = max(batch["input_ids"].shape[1] for batch in batches)

        def padded(name):
            return torch.cat([torch.nn.functional.pad(b[name], (0, length - b[name].shape[1])) for b in batches])

        batch = {name: padded(name) for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
        for name in ("pixel_values", "image_grid_thw"):
            there = [one[name] for one in batches if name in one]
            batch |= {name: torch.cat(there)} if there else {}
        return {**batch, "labels": labels_of(batch)}

    return collate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_store_holds_what_live_training_sees(dtype, tmp_path):
    flex = assembled(host=ZOO["qwen2_5_vl"].build().to(dtype))
    data, collate = Samples(), collator(flex)
    store = score(flex, data, collate, tmp_path, router_inputs="auto", batch_size=4, progress=False)
    assert store.kept_at == "projector"
    batch = collate([data[i] for i in range(len(data))])
    live = flex(**batch, objective=RGLFObjective())
    rows = flex.adapter.read(batch).rows
    torch.testing.assert_close(torch.stack([store.feedback(row) for row in rows]), live.feedback.float())
    torch.manual_seed(0)
    alone = RouterModel.from_store(store, **ROUTER)
    alone.compressor.load_state_dict(flex.compressor.state_dict())
    alone.eval()
    kept = stored_batch([StoredRows(store)[row] for row in range(len(data))])
    stored = alone(objective=RGLFObjective(), **kept)
    torch.testing.assert_close(stored.scores, live.scores)
    torch.testing.assert_close(stored.loss, live.loss, rtol=1e-3, atol=1e-4)
    live.loss.backward()
    stored.loss.backward()
    for (name, one), other in zip(flex.compressor.named_parameters(), alone.compressor.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-2, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_tokens_from_before_the_projector_are_refused(tmp_path):
    flex = assembled()
    with pytest.raises(ConfigError, match=r"can't be had here: its scaler makes images smaller"):
        score(flex, Samples(), collator(flex), tmp_path, router_inputs="auto", router_inputs_at="tower", progress=False)


@pytest.mark.parametrize(
    ("stage", "cls"), [(1, FlexTrainer), (2, FlexTrainer), (3, MultiGranularityTrainer), (4, RGLFTrainer)]
)
def test_stages_train(stage, cls, arguments):
    flex = assembled()
    before = {name: p.detach().clone() for name, p in flex.named_parameters()}
    settings = arguments(max_steps=2, warmup_steps=0.0, remove_unused_columns=False)
    cls(flex, settings, stage=stage, train_dataset=Samples(), data_collator=collator(flex)).train()
    changed = {name for name, p in flex.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith("compressor") for name in changed) == (stage == 4)


def test_a_host_with_adapters_learns_from_every_level():
    tuned = get_peft_model(ZOO["qwen2_5_vl"].build(), LoraConfig(target_modules=["qkv", "q_proj"]))
    flex = assembled(host=tuned)
    inputs = batch_of(flex, side="right")
    batch = {**inputs, "labels": labels_of(inputs)}
    expected = gradients(flex, batch, memory="joint")
    assert {name.split("lora_")[1][0] for name in expected[1] if "visual" in name} == {"A", "B"}
    same(gradients(flex, batch, memory="low"), expected)
