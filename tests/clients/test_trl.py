"""TRL's trainers, as they are, on a FlexModel: SFT, DPO, GRPO and RLOO."""

from collections import defaultdict

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

import tokenflex
from tests.model.test_pinned import Dice
from tokenflex.model import encoding, pins
from tokenflex.policies.constant import ConstantPolicy
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor

trl = pytest.importorskip("trl", reason="an optional dependency: pip install trl")
IMAGES = [Image.fromarray(np.full((20, 60, 3), shade, dtype=np.uint8)) for shade in (20, 90, 160, 230)]
ANSWERS = ["w10", "w11", "w12", "w13"]


def question(with_image=True):
    parts = [{"type": "image"}] if with_image else []
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "w3 w4"}]}]


def answer(word):
    return [{"role": "assistant", "content": [{"type": "text", "text": word}]}]


def data(kind):
    """Four images, each with an answer of its own."""
    columns = {"images": [[image] for image in IMAGES], "prompt": [question() for _ in IMAGES]}
    if kind == "sft":
        return datasets.Dataset.from_dict({**columns, "completion": [answer(word) for word in ANSWERS]})
    if kind == "dpo":
        rejected = [answer(word) for word in reversed(ANSWERS)]
        return datasets.Dataset.from_dict(
            {**columns, "chosen": [answer(word) for word in ANSWERS], "rejected": rejected}
        )
    prompts = [[{"role": "user", "content": "w3 w4"}] for _ in IMAGES]
    return datasets.Dataset.from_dict({"image": IMAGES, "prompt": prompts})


def model(kind, seed=0):
    """The plain host, or one with levels: routed, chosen anew at every call, or fixed."""
    host = tiny_llava_next(seed=seed)
    if kind == "host":
        return host
    torch.manual_seed(0)
    if kind == "routed":
        return tokenflex.wrap(host, processor=tiny_llava_next_processor())
    policy = Dice.Config() if kind == "dice" else ConstantPolicy.Config(level=kind)
    return tokenflex.wrap(host, router="constant", voter="mean", policy=policy)


def settings(config, tmp_path, **more):
    fixed = {
        "output_dir": str(tmp_path), "max_steps": 4, "per_device_train_batch_size": 4, "report_to": "none",
        "use_cpu": True, "bf16": False, "save_strategy": "no", "logging_steps": 1, "learning_rate": 2e-2,
        "lr_scheduler_type": "constant", "disable_tqdm": True,
    }  # fmt: skip
    return config(**fixed | more)


def supervised(kind, tmp_path, peft_config=None, **more):
    return trl.SFTTrainer(
        model(kind), settings(trl.SFTConfig, tmp_path, max_length=None, **more), train_dataset=data("sft"),
        processing_class=tiny_llava_next_processor(), peft_config=peft_config,
    )  # fmt: skip


def preferred(kind, tmp_path, **more):
    peft_config = more.pop("peft_config", None)
    return trl.DPOTrainer(
        model(kind), ref_model=None if peft_config else model(kind), train_dataset=data("dpo"),
        args=settings(trl.DPOConfig, tmp_path, max_length=None, beta=1.0, **more),
        processing_class=tiny_llava_next_processor(), peft_config=peft_config,
    )  # fmt: skip


def even(completion_ids, **_):
    """Rewards words with an even number."""
    return [float(np.mean([token % 2 == 0 for token in ids])) for ids in completion_ids]


def rewarded(trainer, config, kind, tmp_path, **more):
    chosen = {"num_generations": 4, "max_completion_length": 2, "per_device_train_batch_size": 8, "beta": 0.0}
    return trainer(
        kind if isinstance(kind, torch.nn.Module) else model(kind), reward_funcs=even, train_dataset=data("grpo"),
        args=settings(config, tmp_path, **chosen | more), processing_class=tiny_llava_next_processor(),
    )  # fmt: skip


def logged(trainer, name="loss"):
    torch.manual_seed(0)
    trainer.train()
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("make", [supervised, preferred])
def test_at_the_finest_level_losses_are_the_hosts(make, tmp_path):
    expected = logged(make("host", tmp_path, max_steps=2))
    assert logged(make(-1, tmp_path, max_steps=2)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("make", [supervised, preferred])
@pytest.mark.parametrize("kind", ["routed", 1])
def test_losses_fall(make, kind, tmp_path):
    losses = logged(make(kind, tmp_path))
    assert min(losses[1:]) < 0.8 * losses[0]


def test_supervised_gradients_are_the_models_own(tmp_path):
    """What `tokenflex train` and stock Trainer minimise at a fixed level."""
    trainer = supervised(1, tmp_path)
    flex = trainer.model.train()
    inputs = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(flex, dict(inputs))
    loss.backward()
    found = {name: p.grad.clone() for name, p in flex.named_parameters() if p.grad is not None}
    flex.zero_grad()
    own = flex(**inputs)
    own.loss.backward()
    assert loss.item() == pytest.approx(own.loss.item(), rel=1e-4)
    expected = {name: p.grad for name, p in flex.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert len(expected) > 20
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-3), name


def test_log_probabilities_are_those_of_aligned_logits(tmp_path):
    trainer = supervised(0, tmp_path)
    inputs = next(iter(trainer.get_train_dataloader()))
    labels = inputs.pop("labels")
    with torch.no_grad():
        found = trainer.model(**inputs, labels=labels, fused_lm_head=True).log_probs
        logits = trainer.model(**inputs, align="input").logits.log_softmax(-1)
    told = labels[:, 1:] != -100
    expected = logits[:, :-1].gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    assert int(told.sum()) >= len(IMAGES)
    assert torch.allclose(found[told], expected[told], atol=1e-4)


@pytest.mark.parametrize("make", [supervised, preferred])
def test_with_lora(make, tmp_path):
    peft = pytest.importorskip("peft", reason="comes with the extra [test]")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    trainer = make("routed", tmp_path, peft_config=config, learning_rate=5e-2)
    losses = logged(trainer)
    assert min(losses[1:]) < 0.9 * losses[0]
    assert all("lora_" in name for name, p in trainer.model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", ["routed", 0])
def test_grpo_learns(kind, tmp_path):
    rewards = logged(rewarded(trl.GRPOTrainer, trl.GRPOConfig, kind, tmp_path, max_steps=7), "reward")
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.1


def test_rloo_runs(tmp_path):
    assert len(logged(rewarded(trl.RLOOTrainer, trl.RLOOConfig, 0, tmp_path, max_steps=2), "reward")) == 2


@pytest.mark.parametrize("pinned", [True, False])
def test_pinned_levels_are_seen_by_every_call(monkeypatch, tmp_path, pinned):
    """Generation, policy and reference; without pins a model that chooses anew shows them different levels."""
    seen, decide = defaultdict(set), encoding.decide

    def spied(flex, encoded, levels, policy):
        made = decide(flex, encoded, levels, policy)
        for one, decision in zip(pins.images_of(flex.compressor.scaler, encoded), made, strict=True):
            seen[one.image].add(decision.level)
        return made

    monkeypatch.setattr(encoding, "decide", spied)
    model(0).save_pretrained(tmp_path / "flex")  # where TRL loads the reference from
    policy = AutoModelForImageTextToText.from_pretrained(tmp_path / "flex")
    settings = {"max_steps": 2, "beta": 0.1, "learning_rate": 1e-3, "num_iterations": 2}
    trainer = rewarded(trl.GRPOTrainer, trl.GRPOConfig, policy, tmp_path, **settings)
    assert isinstance(trainer.ref_model, tokenflex.FlexModel)
    for flex in (trainer.model, trainer.ref_model):
        flex.compressor.policy = Dice(Dice.Config())
    if pinned:
        with tokenflex.pinned():
            trainer.train()
    else:
        trainer.train()
    assert len(seen) >= 2
    assert {len(levels) == 1 for levels in seen.values()} == ({True} if pinned else {False})
