"""``pinned()``: an image keeps its level while a client scores one sample several times."""

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

import tokenflex
from tests.conftest import image
from tests.hosts.served import served
from tokenflex.contracts import ComponentConfig, Policy
from tokenflex.errors import ConfigError
from tokenflex.model.pins import Pinned, Pins
from tokenflex.testing.host_bench import ROWS
from tokenflex.testing.tiny_hosts import tiny_llava_next

PROMPT = "user : <image> w1 w2 assistant :"


class Dice(Policy):
    """Chooses anew at every call."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Nothing to set."""

    def __init__(self, config: Config, *, num_levels: int | None = None) -> None:
        super().__init__(config)

    def forward(
        self, scores: Float[Tensor, "images levels"], tokens: Int[Tensor, "images levels"]
    ) -> Int[Tensor, " images"]:
        return torch.randint(scores.shape[1], (len(scores),))


def fickle_on(host, **parts):
    return tokenflex.wrap(host, router="constant", voter="mean", policy=Dice.Config(), **parts).eval()


@pytest.fixture(scope="module")
def fickle():
    return fickle_on(tiny_llava_next())


def levels(flex, inputs, **options):
    return [decision.level for decision in flex.decide(**inputs, **options)]


def test_a_prompt_keeps_its_level_with_an_answer_behind_it(fickle, batch):
    """Whatever else is in the batch, and however it is padded."""
    prompts = batch(*[PROMPT] * 4)
    with tokenflex.pinned() as pins:
        first = levels(fickle, prompts)
        out = fickle.generate(**prompts, max_new_tokens=2, return_dict_in_generate=True)
        assert [decision.level for decision in out.decisions] == first
        for side in ("left", "right"):
            scored = batch(*(f"{PROMPT} w{7 + i}" for i in range(4)), side=side)
            with torch.no_grad():
                found = fickle(**scored).decisions
                body = fickle.base_model(**scored).decisions
            assert [d.level for d in found] == [d.level for d in body] == first
            assert all(decision.scores is None for decision in found)
        assert len(pins) == 4
        alone = batch(PROMPT, first=2)
        assert levels(fickle, alone) == first[2:3]
    assert len({tuple(levels(fickle, prompts)) for _ in range(8)}) > 1


def test_other_prompts_and_images_are_others(fickle, batch):
    with tokenflex.pinned() as pins:
        levels(fickle, batch(PROMPT))
        levels(fickle, batch("user : <image> w5 assistant :"))
        levels(fickle, batch(PROMPT, first=1))
        assert len(pins) == 3


def test_one_sample_twice_in_a_batch(fickle, processor):
    inputs = processor(images=[image(0)] * 6, text=[PROMPT] * 6, padding=True, return_tensors="pt")
    with tokenflex.pinned():
        assert len(set(levels(fickle, inputs))) == 1


def test_policy_and_reference_agree(batch):
    """Two models whose routers would choose otherwise."""
    models = [fickle_on(tiny_llava_next(seed=seed)) for seed in (0, 1)]
    inputs = batch(*[PROMPT] * 6)
    with tokenflex.pinned():
        assert levels(models[0], inputs) == levels(models[1], inputs)
        other = fickle_on(tiny_llava_next(), scaler="stride")
        found = {tuple(levels(other, inputs)) for _ in range(3)}
    assert len(found) == 1, "another scaler has levels of its own, which are kept as well"


def test_what_is_forced_is_neither_kept_nor_changed(fickle, batch):
    inputs = batch(PROMPT, PROMPT)
    with tokenflex.pinned() as pins:
        assert levels(fickle, inputs, level=2) == [2, 2]
        levels(fickle, inputs, budget=tokenflex.Budget(ratio=0.5))
        assert len(pins) == 0
        first = levels(fickle, inputs)
        assert levels(fickle, inputs, level=3) == [3, 3]
        assert levels(fickle, inputs) == first


def test_levels_can_be_gone_on_with_and_forgotten(fickle, batch):
    inputs = batch(*[PROMPT] * 6)
    with tokenflex.pinned() as pins:
        first = levels(fickle, inputs)
    with tokenflex.pinned(pins):
        assert levels(fickle, inputs) == first
        with tokenflex.pinned() as inner:
            levels(fickle, inputs)
            assert len(inner) == 6
        assert levels(fickle, inputs) == first
    pins.clear()
    assert len(pins) == 0


def test_memory_is_bounded():
    pins = Pins(capacity=3)
    many = [Pinned((number // 2,), bytes(8 * (number + 1))) for number in range(6)]
    for number, one in enumerate(many):
        pins.keep(one, number)
        assert pins.level(one) == number
    assert len(pins) == 3
    assert pins.level(many[0]) is None
    assert pins.level(many[5]) == 5
    with pytest.raises(ConfigError, match="capacity=0"):
        Pins(capacity=0)


def test_the_longest_prompt_counts():
    pins = Pins()
    short, long = (Pinned(("image",), bytes(8 * tokens)) for tokens in (2, 4))
    pins.keep(short, 1)
    assert pins.level(long) == 1
    pins.keep(long, 3)
    assert (pins.level(short), pins.level(long)) == (1, 3)
    assert pins.level(Pinned(("image",), bytes(8))) is None
    assert pins.level(Pinned(("another",), bytes(16))) is None


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "idefics3", "mistral3"])
def test_images_are_told_apart_on_other_hosts(name):
    """By patches, tiles, rows and padded stacks."""
    tiny = served(name)
    flex = fickle_on(tiny.build())
    with tokenflex.pinned() as pins:
        first = levels(flex, tiny.batch(flex.host.config, ROWS))
        size = len(pins)
        assert levels(flex, tiny.batch(flex.host.config, ROWS, side="right")) == first
        levels(flex, tiny.batch(flex.host.config, ROWS[:1]))
        assert len(pins) == size
        levels(flex, tiny.batch(flex.host.config, ROWS[:1], first=3))
        assert len(pins) > size
