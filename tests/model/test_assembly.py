"""A model's parts under their own names, and what is refused where a part, a batch or a folder is expected."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

import tokenflex
from tokenflex.contracts import ComponentConfig, Policy
from tokenflex.errors import ConfigError, InputError, UnknownComponentError
from tokenflex.policies.argmax import ArgmaxPolicy
from tokenflex.policies.budget import BudgetPolicy
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.scalers.stride import StrideScaler
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor


class Cheapest(Policy):
    """A policy that nobody registered."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """No settings."""

    def forward(self, scores, tokens):
        """The coarsest level."""
        return torch.zeros(len(scores), dtype=torch.long)


@pytest.fixture
def flex():
    torch.manual_seed(0)
    return tokenflex.wrap(tiny_llava_next()).eval()


@pytest.fixture
def batch():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    return tiny_llava_next_processor()(images=image, text="user : <image> w1 w2 assistant :", return_tensors="pt")


def levels(flex, batch):
    return [decision.level for decision in flex.decide(**batch)]


def test_parts_have_their_names(flex):
    for kind in ("scaler", "router", "voter", "policy"):
        assert getattr(flex, kind) is getattr(flex.compressor, kind)
    assert not any(name.startswith("policy") for name, _ in flex.named_modules())


@pytest.mark.parametrize(
    "policy", [tokenflex.Budget(ratio=0.1), Cheapest, Cheapest.Config(), Cheapest(Cheapest.Config())]
)
def test_a_policy_that_is_set_decides(flex, batch, policy):
    before = levels(flex, batch)
    flex.policy = policy
    assert set(levels(flex, batch)) == {0}
    flex.policy = "argmax"
    assert isinstance(flex.policy, ArgmaxPolicy)
    assert levels(flex, batch) == before


def test_a_policy_that_is_set_is_saved(flex, batch, tmp_path):
    flex.policy = tokenflex.Budget(ratio=0.5, floor=1)
    flex.save_parts(tmp_path / "parts")
    flex.save_pretrained(tmp_path / "model")
    again = tokenflex.load_parts(tmp_path / "parts", host=flex.host)
    whole = tokenflex.FlexModel.from_pretrained(tmp_path / "model")
    for model in (again, whole):
        assert model.policy.config == tokenflex.Budget(ratio=0.5, floor=1)
        assert levels(model.eval(), batch) == levels(flex, batch)


def test_another_policy_while_loading(flex, batch, tmp_path):
    flex.save_parts(tmp_path)
    again = tokenflex.load_parts(tmp_path, host=flex.host, policy=tokenflex.Budget(ratio=0.1), dtype=torch.bfloat16)
    assert set(levels(again.eval(), batch)) == {0}
    assert {p.dtype for p in again.compressor.parameters()} == {torch.bfloat16}
    with pytest.raises(UnknownComponentError, match="argmx"):
        tokenflex.load_parts(tmp_path, host=flex.host, policy="argmx")


def test_a_policy_for_other_levels_is_refused_and_the_old_one_stays(flex):
    before = flex.policy
    with pytest.raises(ConfigError, match="floor"):
        flex.policy = tokenflex.Budget(floor=7)
    with pytest.raises(ConfigError, match="is no policy"):
        flex.policy = AveragePoolScaler.Config()
    with pytest.raises(ConfigError, match="is no policy"):
        flex.policy = None
    assert flex.policy is before


@pytest.mark.parametrize("kind", ["scaler", "router", "voter"])
def test_other_parts_are_not_exchanged(flex, kind):
    before = getattr(flex, kind)
    with pytest.raises(ConfigError, match=rf"flex\.{kind} can't be exchanged.*wrap\(flex\.host, {kind}="):
        setattr(flex, kind, before)
    assert getattr(flex, kind) is before


def test_a_budget_is_of_its_own_name():
    assert type(tokenflex.Budget(ratio=0.3)).__name__ == "Budget"
    assert repr(tokenflex.Budget(ratio=0.3)).startswith("Budget(")
    assert BudgetPolicy.Config is tokenflex.Budget
    with pytest.raises(ConfigError, match="two limits"):
        tokenflex.Budget(ratio=0.3, tokens=4)


def test_classes_are_parts_with_default_settings():
    flex = tokenflex.wrap(tiny_llava_next(), scaler=StrideScaler, router="constant", voter="mean")
    assert isinstance(flex.scaler, StrideScaler)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scaler": None}, r"scaler=None \(NoneType\) is no scaler: expected a registered name"),
        ({"policy": 3}, r"policy=3 \(int\) is no policy"),
        ({"router": AveragePoolScaler.Config()}, "is no router"),
        ({"scaler": AveragePoolScaler(AveragePoolScaler.Config())}, r"pass its settings, AveragePoolScaler\.Config"),
        ({"scaler": dict}, "is no scaler"),
        ({"adapter": 3}, r"adapter=3 \(int\) is no HostAdapter"),
        ({"processor": "llava"}, r"processor='llava' \(str\) has no chat template"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16' is no type for parameters"),
        ({"dtype": torch.int8}, r"dtype=torch\.int8 is no type for parameters"),
    ],
)
def test_what_is_no_part_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        tokenflex.wrap(tiny_llava_next(), **given)


def test_what_is_no_folder_is_refused(flex):
    for call in (
        lambda: flex.save_parts(None),
        lambda: flex.save_pretrained(3),
        lambda: tokenflex.load_parts(None, host=flex.host),
        lambda: tokenflex.evaluation.Evaluation(None),
        lambda: tokenflex.training.FeedbackStore(None),
    ):
        with pytest.raises(ConfigError, match=r"\((NoneType|int)\) is no path"):
            call()


def test_what_is_no_batch_is_refused(flex, batch):
    with pytest.raises(InputError, match=r"the batch \(empty\) has no input_ids"):
        flex.decide()
    del batch["input_ids"]
    with pytest.raises(InputError, match="without input_ids"):
        flex.decide(**batch)


def test_advice_for_a_part_that_nobody_registered_can_be_followed(flex, tmp_path):
    flex.policy = Cheapest
    with pytest.raises(ConfigError, match=r"@tokenflex\.policies\.register\('a-name'\)"):
        flex.save_parts(tmp_path)
    with tokenflex.policies.temporary("cheapest", Cheapest):
        flex.save_parts(tmp_path)
        assert isinstance(tokenflex.load_parts(tmp_path, host=flex.host).policy, Cheapest)
