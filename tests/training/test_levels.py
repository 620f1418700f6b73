"""Three ways through the levels, one set of gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenflex
from tests.hosts.served import served
from tokenflex.errors import ConfigError, InputError
from tokenflex.hosts.packed import pack
from tokenflex.hosts.targets import agrees_in_chunks, chunked_losses, shifted
from tokenflex.testing.host_bench import ROWS, labels_of
from tokenflex.training import STAGES, ChatDataset, FlexTrainer, MultiGranularityObjective
from tokenflex.training.levels import at_level, level_feedback
from tokenflex.training.stages import select

WAYS = ("joint", "low", "packed")
HOSTS = ("llava_next", "qwen3_vl", "ovis2", "granite4_vision", "llava_onevision", "internvl", "unlimited_ocr")


def gradients(flex, batch, scale=1.0, **settings):
    """(loss, gradient by name) of one step of stage 3."""
    flex.zero_grad(set_to_none=True)
    loss = flex(**batch, objective=MultiGranularityObjective(**settings)).loss
    (loss * scale).backward()
    return loss.detach(), {n: p.grad.clone() for n, p in flex.named_parameters() if p.grad is not None}


def same(found, expected):
    assert found[1].keys() == expected[1].keys()
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def made(name):
    torch.manual_seed(0)
    flex = tokenflex.wrap(served(name).build()).eval()
    select(flex, STAGES[3])
    inputs = served(name).batch(flex.host.config, ROWS, side="right")
    return flex, {**inputs, "labels": labels_of(inputs)}


@pytest.mark.parametrize("name", HOSTS)
def test_same_gradients(name):
    flex, batch = made(name)
    expected = gradients(flex, batch, memory="joint")
    assert float(expected[0]) > 0.0
    for way in WAYS[1:]:
        if way == "packed" and flex.adapter.packing_refusal:
            continue
        same(gradients(flex, batch, memory=way), expected)


def test_some_hosts_pack():
    assert sum(made(name)[0].adapter.packing_refusal is None for name in HOSTS) >= 5


@pytest.mark.parametrize(("way", "passes"), [("joint", 5), ("low", 5), ("packed", 1)])
def test_passes_through_the_language_model(fresh, training_batch, monkeypatch, way, passes):
    """Where parameters are sharded each pass gathers all of them."""
    flex, seen = fresh(), []
    model = flex.host.model.language_model
    original = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: (seen.append(1), original(*args, **kwargs))[1])
    flex(**training_batch, objective=MultiGranularityObjective(way))
    assert len(seen) == passes


@pytest.mark.parametrize("way", WAYS[1:])
def test_under_autocast(fresh, training_batch, way):
    flex = fresh()
    select(flex, STAGES[3])
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(flex, training_batch, memory="joint")
        found = gradients(flex, training_batch, memory=way)
    for name, value in expected[1].items():
        off = (found[1][name] - value).abs().max()
        assert off <= 0.05 * value.abs().max() + 1e-4, name


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_with_gradient_checkpointing(fresh, training_batch, way, reentrant):
    flex = fresh()
    select(flex, STAGES[3])
    expected = gradients(flex, training_batch, memory="joint")
    flex.gradient_checkpointing_enable({"use_reentrant": reentrant})
    flex.enable_input_require_grads()
    same(gradients(flex, training_batch, memory=way), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("frozen", ["vision_tower", "projector", "language_model"])
def test_with_frozen_groups(fresh, training_batch, way, frozen):
    flex, twin = fresh(), fresh()
    for model in (flex, twin):
        select(model, STAGES[3].with_rates(**{frozen: 0.0}))
    same(gradients(flex, training_batch, memory=way), gradients(twin, training_batch, memory="joint"))


def test_backward_passes_of_low_are_scaled_by_its_caller(fresh, training_batch):
    flex = fresh()
    select(flex, STAGES[3])
    _, expected = gradients(flex, training_batch, memory="joint")
    found = gradients(flex, training_batch, 7.0, memory="low", backward=lambda loss: (loss * 7.0).backward())[1]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], 7.0 * value, rtol=1e-4, atol=1e-5, msg=name)


def test_low_keeps_one_levels_graph(fresh, training_batch):
    """At each inner backward pass the graphs of the levels before it are gone."""
    flex = fresh()
    select(flex, STAGES[3].with_rates(vision_tower=0.0, projector=0.0))

    class Kept(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self):
            self.count = 0

            class Box:
                def __init__(box, tensor):  # noqa: N805
                    box.tensor = tensor
                    self.count += tensor.numel()

                def __del__(box):  # noqa: N805
                    self.count -= box.tensor.numel()

            super().__init__(Box, lambda box: box.tensor)

    peaks = {}
    for way in ("joint", "low"):
        kept, peak = Kept(), []
        with kept:

            def backward(loss, kept=kept, peak=peak):
                peak.append(kept.count)
                loss.backward()

            loss = flex(**training_batch, objective=MultiGranularityObjective(way, backward=backward)).loss
            peak.append(kept.count)
            loss.backward()
        peaks[way] = max(peak)
    assert peaks["low"] < 0.6 * peaks["joint"], peaks


@pytest.mark.parametrize("way", WAYS)
def test_text_only_and_unanswered_batches(fresh, collator, training_batch, way):
    from tests.training.conftest import ROWS as CHATS

    flex = fresh()
    select(flex, STAGES[3])
    text = collator([ChatDataset(CHATS)[2]])
    same(gradients(flex, text, memory=way), gradients(flex, text, memory="joint"))
    nothing = training_batch | {"labels": torch.full_like(training_batch["labels"], -100)}
    loss, found = gradients(flex, nothing, memory=way)
    assert loss.item() == 0.0
    assert all(bool((value == 0).all()) for value in found.values())


@pytest.mark.parametrize("way", WAYS)
def test_evaluation_leaves_no_gradients(fresh, training_batch, way):
    flex = fresh()
    with torch.no_grad():
        output = flex(**training_batch, objective=MultiGranularityObjective(way, "sandwich"))
    assert output.levels == (0, 1, 2, 3, 4)
    assert all(p.grad is None for p in flex.parameters())


def test_accumulated_steps_are_the_same_in_all_ways(fresh, arguments, collator):
    from tests.training.conftest import ROWS as CHATS

    results = []
    for way in WAYS:
        flex = fresh()
        plan = {"max_steps": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
        stage = STAGES[3].with_rates(vision_tower=1e-2, projector=1e-2, language_model=1e-2)
        trainer = FlexTrainer(
            flex, arguments(**plan, warmup_steps=0.0, optim="sgd", max_grad_norm=0.0), stage=stage,
            objective=MultiGranularityObjective(way), train_dataset=ChatDataset(CHATS), data_collator=collator,
        )  # fmt: skip
        trainer.train()
        results.append({name: p.detach().clone() for name, p in flex.named_parameters()})
    for found in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_sandwich_expects_the_mean_over_all_levels(fresh, training_batch):
    flex = fresh()
    objective = MultiGranularityObjective("joint", "sandwich")
    with torch.no_grad():
        every = flex(**training_batch, objective=MultiGranularityObjective("joint")).level_losses
    seen = {}
    torch.manual_seed(0)
    for _ in range(12):
        output = flex(**training_batch, objective=objective)
        assert output.levels[0] == 0
        assert output.levels[-1] == 4
        seen[output.levels[1]] = output.loss.detach()
    assert set(seen) == {1, 2, 3}
    torch.testing.assert_close(torch.stack(list(seen.values())).mean(), every.mean())


def test_which_way_auto_means(fresh):
    flex = fresh()
    assert MultiGranularityObjective().resolve(flex) == "low"
    next(flex.host.parameters()).ds_id = 0
    assert MultiGranularityObjective().resolve(flex) == "packed"
    with pytest.raises(ConfigError, match="memory='packed'"):
        MultiGranularityObjective("low").resolve(flex)


def test_refusals(training_batch, fresh):
    with pytest.raises(ConfigError, match="memory='tiny'; use one of auto, joint, low, packed"):
        MultiGranularityObjective("tiny")
    with pytest.raises(ConfigError, match="levels='some'"):
        MultiGranularityObjective(levels="some")
    flex, batch = made("gemma3")
    with pytest.raises(ConfigError, match="memory='packed' can't be had of gemma3: images attend"):
        flex(**batch, objective=MultiGranularityObjective("packed"))
    assert MultiGranularityObjective().resolve(flex) == "low"
    encoded = flex.encode(batch)
    with pytest.raises(InputError, match="rows can't be packed"):
        pack(flex.adapter, [at_level(flex, batch, encoded, 0)])
    flex = fresh()
    inputs = at_level(flex, training_batch, flex.encode(training_batch), 0)
    with pytest.raises(InputError, match="weather: it isn't known how"):
        pack(flex.adapter, [inputs | {"weather": torch.zeros(1)}])


@given(chunk=st.integers(1, 80))
@settings(max_examples=15, deadline=None)
def test_vocabulary_in_chunks(flex, processor, chunk):
    inputs = dict(processor(text=["w1 w2 w3", "w4 w5"], padding=True, padding_side="right", return_tensors="pt"))
    targets = shifted(inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100))
    with torch.no_grad():
        logits = flex.host(**inputs).logits
        expected = F.cross_entropy(logits[targets != -100], targets[targets != -100], reduction="none")
        torch.testing.assert_close(chunked_losses(flex.host, inputs, targets, chunk), expected)
        assert agrees_in_chunks(flex.host, inputs, targets, chunk)


@torch.no_grad()
def test_feedback_in_chunks_is_the_same(fresh, training_batch):
    flex = fresh().eval()
    encoded = flex.encode(training_batch)
    whole = level_feedback(flex, training_batch, encoded)
    assert whole.shape == (4, 5)
    torch.testing.assert_close(level_feedback(flex, training_batch, encoded, 13), whole)


@torch.no_grad()
def test_hosts_that_cap_their_logits_are_found_out():
    flex, batch = made("gemma4")
    inputs = at_level(flex, batch, flex.encode(batch), 0)
    targets = shifted(inputs.pop("labels"))
    assert agrees_in_chunks(flex.host, inputs, targets, 7)
    flex.host.config.get_text_config().final_logit_softcapping = 1.0
    assert not agrees_in_chunks(flex.host, inputs, targets, 7)
