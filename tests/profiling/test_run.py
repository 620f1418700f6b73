"""A whole profile of a tiny model: what is in it, and that all settings are asked the same."""

import dataclasses
import itertools
import json

import pytest
import torch

import tokenflex
from tests.conftest import TEXTS
from tokenflex import Budget
from tokenflex.contracts import Decision
from tokenflex.errors import ConfigError, InputError
from tokenflex.profiling import MeasuredSetting, Plan, Work, profile
from tokenflex.profiling.account import Account
from tokenflex.profiling.mix import GivenLevels, levels_for
from tokenflex.profiling.plan import VANILLA
from tokenflex.profiling.run import _doubts, steps
from tokenflex.profiling.stages import STAGES, answering

TEXT = "user : <image> w1 w2 assistant :"
LENGTHS = (1, 4)
PLAN = Plan(
    levels=[2], budgets={"ratio=0.3": Budget(ratio=0.3)}, answers=LENGTHS, runs=2, warm_up=0, request="made up",
    mixes={"half": 0.5},
)  # fmt: skip
NAMES = ["vanilla", "level 0", "level 2", "level 4", "routed", "routed, ratio=0.3", "mix half"]


@pytest.fixture(scope="module")
def batches(batch):
    return [batch(*TEXTS[:2])]


@pytest.fixture(scope="module")
def ticks():
    return []


@pytest.fixture(scope="module")
def found(flex, batches, ticks):
    return profile(flex, batches, PLAN, tick=lambda: ticks.append(1))


def test_every_setting_is_there_with_its_stages(found):
    assert [(one.rows, one.images) for one in found.batches] == [(2, 2)]
    for one in found.batches:
        assert [setting.name for setting in one.settings] == NAMES
        for setting in one.settings:
            expected = {"vanilla": {"prefill"}, "level": set(STAGES) - {"decision"}}
            assert set(setting.stages) == expected.get(setting.kind, set(STAGES))
            assert [answer.new_tokens for answer in setting.answers] == list(LENGTHS)
            assert setting.answers[0].per_token is None
            assert setting.answers[0].end_to_end == setting.first_token, "one token is the first token"
            every = [*setting.stages.values(), setting.first_token, *(a.end_to_end for a in setting.answers)]
            assert all(len(times.seconds) == PLAN.runs and min(times.seconds) > 0 for times in every)


def test_a_mix_keeps_its_share_of_the_batch_and_runs_the_router(found, flex, batches):
    """Levels differ within the batch; a single image gets the level next to the share."""
    setting = found.batches[0].settings[-1]
    with torch.no_grad():
        totals = flex.encode(batches[0]).counts.sum(0)
    assert setting.levels == levels_for(0.5, (totals / totals[-1]).tolist(), 2)
    assert "decision" in setting.stages
    alone = MeasuredSetting("mix half", "mix", share=0.5).on(torch.tensor([[10, 20, 45, 100]]))
    assert alone.budget == GivenLevels.Config(levels=(2,))


def test_per_token_is_what_further_tokens_take(found):
    setting = found.batches[0].settings[0]
    pairs = zip(setting.answers[1].end_to_end.seconds, setting.first_token.seconds, strict=True)
    assert setting.answers[1].per_token.seconds == tuple((whole - first) / 3 for whole, first in pairs)


def test_tokens_are_those_of_the_decisions(flex, found, batches):
    for one, inputs in zip(found.batches, batches, strict=True):
        vanilla, *others = one.settings
        full = flex.decide(**inputs, level=-1)
        assert vanilla.tokens == sum(d.of for d in full) / len(full)
        assert vanilla.levels == ()
        assert vanilla.prompt_length == one.prompt_length == inputs["input_ids"].shape[1]
        for setting in others:
            arguments = {"level": int(setting.name[-1])} if setting.kind == "level" else {}
            arguments |= {"budget": Budget(ratio=0.3)} if setting.kind == "budget" else {}
            arguments |= {"level": list(setting.levels)} if setting.kind == "mix" else {}
            decided = flex.decide(**inputs, **arguments)
            assert setting.levels == tuple(d.level for d in decided)
            assert setting.tokens == sum(d.tokens for d in decided) / len(decided)
            with torch.no_grad():
                spliced, _ = flex.prepare(inputs, arguments.get("level"), "left", arguments.get("budget"))
            assert setting.prompt_length == spliced.inputs["input_ids"].shape[1]
        assert others[2].prompt_length == vanilla.prompt_length, "the finest level leaves everything where it was"


def test_caches_are_as_large_as_the_formula_says(found, flex):
    text = flex.host.config.text_config
    head = text.hidden_size // text.num_attention_heads
    for one in found.batches:
        for setting in one.settings:
            for answer in setting.answers:
                # The last token written is never fed back.
                length = setting.prompt_length + answer.new_tokens - 1
                numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * head * length * one.rows
                assert answer.memory.cache == 4 * numbers


def test_memory_and_work_shrink_with_the_tokens(found):
    for one in found.batches:
        vanilla, *levels = one.settings[:4]
        for place in range(len(LENGTHS)):
            flops = [setting.answers[place].work.flops for setting in levels]
            caches = [setting.answers[place].memory.cache for setting in levels]
            assert flops == sorted(flops)
            assert caches == sorted(caches)
            assert flops[0] < flops[-1]
            assert vanilla.answers[place].work.flops == flops[-1], "the finest level computes what the host computes"
        routed = one.settings[4]
        assert routed.answers[0].work.flops > routed.prefill.flops + flops[0] - levels[0].prefill.flops, (
            "so does routing"
        )
        for setting in one.settings:
            memory = setting.answers[-1].memory
            assert memory.peak - memory.held == memory.working > memory.cache > 0
            assert setting.prefill.flops < setting.answers[0].work.flops or setting.kind == "vanilla"


def test_vanilla_and_finest_write_the_same(flex, batches, found):
    for inputs in batches:
        plain = answering(flex, inputs, MeasuredSetting("v", "vanilla"), 6)()["sequences"]
        finest = answering(flex, inputs, MeasuredSetting("f", "level", level=-1), 6)()["sequences"]
        assert torch.equal(plain, finest)
        assert plain.shape[1] == inputs["input_ids"].shape[1] + 6
    assert not any("another answer" in told for told in found.warnings)


def test_what_is_recorded(found, flex, ticks):
    where = found.surroundings
    assert where.attention == (flex.host.config._attn_implementation,)
    assert (where.dtype, where.device) == (("float32",), "cpu")
    assert where.torch == torch.__version__
    assert where.parts["router"] == "AVGRouter"
    assert (found.runs, found.warm_up, found.request) == (2, 0, "made up")
    assert [told for told in found.warnings if told.startswith("Only 2 run(s) per setting")]
    assert len(ticks) == steps(PLAN, 5)
    assert [even.new_tokens for even in found.batches[0].break_even] == list(LENGTHS)
    assert [one.setting for one in found.batches[0].comparisons] == 2 * ["routed", "routed, ratio=0.3", "mix half"]


def test_break_even_is_fitted_to_the_forced_levels(found):
    one = found.batches[0]
    even = one.break_even[1]
    levels = [setting for setting in one.settings if setting.kind == "level"]
    assert (even.coarsest, even.finest) == (levels[0].tokens, levels[-1].tokens)
    assert even.decision == one.settings[4].stages["decision"].median
    assert even.vanilla == one.settings[0].answers[1].end_to_end.median


def test_json_round_trips(found):
    told = found.to_dict()
    assert json.loads(json.dumps(told)) == told
    assert set(told) == {"format", "surroundings", "command", "request", "runs", "warm_up", "batches", "warnings"}
    setting = told["batches"][0]["settings"][0]
    assert set(setting) == {
        "name", "kind", "levels", "tokens", "prompt_length", "stages", "rest", "prefill", "time_to_first_token",
        "answers",
    }  # fmt: skip
    assert set(setting["answers"][0]) == {"new_tokens", "end_to_end", "per_token", "memory", "work"}
    assert set(setting["time_to_first_token"]) == {"median", "p95", "n", "seconds"}
    even = told["batches"][0]["break_even"][0]
    assert {"dropped", "kept", "kept_beside_vanilla", "verdict", "slope", "decision", "in_words"} <= set(even)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.runs = 3


def still(run):
    """A clock on which everything takes a second."""
    run()
    return 1.0


def test_with_a_clock_that_stands_still_nothing_is_gained(host, batch):
    flex = tokenflex.wrap(host, router="constant", voter="mean")
    batches = [batch(TEXT), batch(TEXT, TEXT)]
    found = profile(flex, batches, Plan(levels=[], answers=(1,), runs=1, warm_up=0), clock=still)
    one, two = found.batches
    assert (one.rows, two.rows) == (1, 2)
    assert [setting.name for setting in one.settings] == ["vanilla", "level 0", "level 4", "routed"]
    assert one.break_even[0].in_words.startswith("No gain: routing costs more than it can save here")
    assert one.comparisons[0].ratio == 1.0
    assert not any("busy" in told for told in found.warnings)


def test_another_answer_at_the_finest_level_is_warned_of(host, batch, monkeypatch):
    """A scaler whose finest level isn't the image itself compares two different models."""
    from tokenflex.scalers.average_pool import AveragePoolScaler

    flex = tokenflex.wrap(host)
    scale = AveragePoolScaler.scale

    def broken(self, tokens, level):
        scaled = scale(self, tokens, level)
        return dataclasses.replace(scaled, features=-3 * scaled.features)

    monkeypatch.setattr(AveragePoolScaler, "scale", broken)
    found = profile(flex, batch(TEXT), Plan(levels=[], answers=(4,), runs=1, warm_up=0), clock=still)
    assert any("level 4 writes another answer than the vanilla host" in told for told in found.warnings)


def test_other_kernels_and_changing_minds_are_warned_of():
    ids = torch.zeros(1, 2, dtype=torch.long)
    forced, routed = MeasuredSetting("level 1", "level", level=1), MeasuredSetting("routed", "routed")
    mine = (Decision(1, None, 3, 9),)
    accounts = {VANILLA: Account((), 9, {}, ids), forced: Account(mine, 9, {}, ids), routed: Account(mine, 9, {}, ids)}
    works = {VANILLA: Work(1, ("flash",)), forced: Work(1, ()), routed: Work(1, ("flash", "math"))}

    class Fickle:
        def decide(self, **given):
            return [Decision(0, None, 1, 9)]

    told = _doubts(Fickle(), {"input_ids": ids}, accounts, works)
    assert len(told) == 2
    assert "routed runs the attention kernel(s) math, the vanilla host doesn't" in told[0]
    assert "routed decides otherwise every time; its tokens are those of one run" in told[1]


def test_a_busy_machine_is_warned_of(host, batch):
    flex, seconds = tokenflex.wrap(host, router="constant", voter="mean"), itertools.count(1)

    def slowing(run):
        run()
        return float(next(seconds))

    found = profile(flex, batch(TEXT), Plan(levels=[], answers=(1,), runs=2, warm_up=0), clock=slowing)
    assert any("the machine was busy with something else" in told for told in found.warnings)


def test_training_models_go_on_training(host, batch):
    flex = tokenflex.wrap(host, router="constant", voter="mean")
    flex.train()
    try:
        profile(flex, batch(TEXT), Plan(levels=[], answers=(1,), runs=1, warm_up=0), clock=still)
        assert flex.training
        assert flex.compressor.training
    finally:
        flex.eval()


def test_refusals(flex, batch):
    with pytest.raises(InputError, match="the batch has no images, so there is nothing to compare"):
        profile(flex, batch("w1 w2 w3"), PLAN)
    with pytest.raises(ConfigError, match=r"level 7: this scaler has levels 0 \(fewest tokens\) to 4"):
        profile(flex, batch(TEXT), Plan(levels=[7]))
    with pytest.raises(ConfigError, match="answers=\\[0\\]: name one or more lengths of 1 token or more"):
        Plan(answers=[0])
    with pytest.raises(ConfigError, match="runs=0 and warm_up=3: at least 1 run"):
        Plan(runs=0)
    with pytest.raises(ConfigError, match="mix none: name AI2D, ScienceQA, ChartQA, or a share of the visual tokens"):
        Plan(mixes={"none": 0.0})


def test_coarsest_and_finest_always_join():
    names = [setting.name for setting in Plan(levels=[-2, 3, -1]).settings(5)]
    assert names == ["vanilla", "level 0", "level 3", "level 4", "routed"]
