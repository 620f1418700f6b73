"""``profile``: every setting of a model in turn, on the same batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from tokenflex.contracts import HostInputs
from tokenflex.errors import InputError
from tokenflex.model import FlexModel
from tokenflex.profiling import flops, surroundings
from tokenflex.profiling.account import Account, account
from tokenflex.profiling.break_even import break_even, compare_times
from tokenflex.profiling.flops import Work
from tokenflex.profiling.plan import ENOUGH, MeasuredSetting, Plan
from tokenflex.profiling.result import AnswerProfile, BatchProfile, Profile, SettingProfile
from tokenflex.profiling.stages import STAGES, answering, stages
from tokenflex.profiling.timing import Call, Clock, Times, clock_for, interleaved

Tick = Call
BUSY = 1.5
"""A 95th percentile so many times the median comes from the machine, not from the model."""


@dataclass(frozen=True)
class _Bench:
    """What the measurements of all batches share."""

    flex: FlexModel
    plan: Plan
    settings: tuple[MeasuredSetting, ...]
    clock: Clock
    tick: Tick


def profile(
    flex: FlexModel,
    inputs: HostInputs | Sequence[HostInputs],
    plan: Plan | None = None,
    *,
    clock: Clock | None = None,
    tick: Tick = lambda: None,
) -> Profile:
    """Measure a model in every setting of the plan, beside its own host without parts.

    All settings call the same host object, so weights and their type are the same; that the attention implementation,
    the prompt and the number of new tokens are, too, is asserted.

    Args:
        inputs: a batch as the host's processor made it, on the model's device and padded on the left; or several,
            measured one after another.
        clock: instead of the device's own.
        tick: called `steps` times per batch.

    Raises:
        InputError: a batch has no images.
        ConfigError: the plan names a level that isn't there, or the device has no clock.
    """
    plan, training = plan or Plan(), flex.training
    batches = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    settings = plan.settings(flex.compressor.num_levels)
    bench = _Bench(flex, plan, settings, clock or clock_for(flex.device), tick)
    before = surroundings.of(flex)
    flex.eval()
    try:
        done = [_batch(bench, batch) for batch in batches]
    finally:
        flex.train(training)
    after = surroundings.attention_of(flex.host)
    assert after == before.attention, f"attention went from {before.attention} to {after} on the way"
    warnings = [] if plan.runs >= ENOUGH else [_few(plan.runs)]
    warnings += [notes for _, doubts in done for notes in doubts]
    return Profile(
        surroundings=before,
        request=plan.request,
        runs=plan.runs,
        warm_up=plan.warm_up,
        batches=tuple(batch for batch, _ in done),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def steps(plan: Plan, num_levels: int) -> int:
    """How often `profile` ticks per batch."""
    return len(plan.settings(num_levels)) * (len(plan.lengths) + plan.warm_up + plan.runs)


def _batch(bench: _Bench, inputs: HostInputs) -> tuple[BatchProfile, list[str]]:
    """One batch, and what is to be warned of."""
    flex, plan = bench.flex, bench.plan
    if not flex.adapter.read(inputs).grids:
        raise InputError(
            "the batch has no images, so there is nothing to compare. Pass pixel_values and what belongs to them as "
            "the processor made them."
        )
    with torch.no_grad():
        counts = flex.encode(inputs).counts
    settings = [setting.on(counts) for setting in bench.settings]
    # Memory is measured before anything is held for the stages.
    accounts = {s: account(flex, inputs, s, plan.lengths, bench.tick) for s in settings}
    with torch.no_grad():
        encoded = flex.encode(inputs)
    calls: dict[str, dict[str, Call]] = {}
    prefills: dict[MeasuredSetting, Work] = {}
    for setting in settings:
        staged = stages(flex, inputs, setting, encoded, accounts[setting].decisions)
        prefills[setting] = flops.counted(staged.get("prefill", answering(flex, inputs, setting, 1)))
        whole = {_answer(length): answering(flex, inputs, setting, length) for length in (1, *plan.lengths)}
        calls[setting.name] = {**staged, **whole}
    times = interleaved(calls, plan.runs, plan.warm_up, bench.clock, bench.tick)
    finest = fmean(encoded.counts[:, -1].tolist())
    profiles = {s: _setting(s, accounts[s], finest, times[s.name], prefills[s]) for s in settings}
    done = _concluded(inputs, len(encoded.images), profiles)
    return done, [*_doubts(flex, inputs, accounts, prefills), *_unrest(done)]


def _setting(
    setting: MeasuredSetting, found: Account, finest: float, times: Mapping[str, Times], prefill: Work
) -> SettingProfile:
    first = times[_answer(1)]
    answers = [
        AnswerProfile(length, times[_answer(length)], _per_token(times[_answer(length)], first, length), used, work)
        for length, (used, work) in found.answers.items()
    ]
    return SettingProfile(
        name=setting.name,
        kind=setting.kind,
        levels=tuple(decision.level for decision in found.decisions),
        tokens=fmean(decision.tokens for decision in found.decisions) if found.decisions else finest,
        prompt_length=found.prompt_length,
        stages={name: times[name] for name in STAGES if name in times},
        prefill=prefill,
        first_token=first,
        answers=tuple(answers),
    )


def _answer(length: int) -> str:
    return f"answer of {length}"


def _per_token(whole: Times, first: Times, length: int) -> Times | None:
    if length == 1:
        return None
    return Times(tuple((w - f) / (length - 1) for w, f in zip(whole.seconds, first.seconds, strict=True)))


def _concluded(inputs: HostInputs, images: int, profiles: Mapping[MeasuredSetting, SettingProfile]) -> BatchProfile:
    """The batch with what follows from its settings."""
    every = tuple(profiles.values())
    vanilla, routed = (next(one for one in every if one.kind == kind) for kind in ("vanilla", "routed"))
    forced = [one for one in every if one.kind == "level"]
    evens, comparisons = [], []
    for place, answer in enumerate(vanilla.answers):
        evens.append(
            break_even(
                answer.new_tokens,
                [one.tokens for one in forced],
                [one.answers[place].end_to_end.seconds for one in forced],
                routed.stages["decision"].median,
                answer.end_to_end.median,
            )
        )
        comparisons += [
            compare_times(one.name, answer.new_tokens, one.answers[place].end_to_end.seconds, answer.end_to_end.seconds)
            for setting, one in profiles.items()
            if setting.decides or setting.kind == "escalate"
        ]
    rows, length = inputs["input_ids"].shape
    return BatchProfile(rows, images, length, every, tuple(evens), tuple(comparisons))


def _few(runs: int) -> str:
    return (
        f"Only {runs} run(s) per setting: medians are rough, and the 95th percentile is hardly more than the slowest "
        f"run. Take {ENOUGH} or more for numbers to be quoted."
    )


def _unrest(batch: BatchProfile) -> list[str]:
    taken = batch.settings[0].answers[-1].end_to_end
    if taken.p95 <= BUSY * taken.median:
        return []
    return [
        f"With a batch of {batch.rows}, the vanilla host's 95th percentile is {taken.p95 / taken.median:.1f} times its "
        "median: the machine was busy with something else, so times are rough."
    ]


def _doubts(
    flex: FlexModel,
    inputs: HostInputs,
    accounts: Mapping[MeasuredSetting, Account],
    prefills: Mapping[MeasuredSetting, Work],
) -> list[str]:
    """What makes the comparison less than it seems, as sentences."""
    at, notes = f"With a batch of {len(inputs['input_ids'])}", list[str]()
    vanilla = next(setting for setting in accounts if setting.kind == "vanilla")
    finest = [setting for setting in accounts if setting.kind == "level"][-1]
    if not torch.equal(accounts[finest].ids, accounts[vanilla].ids):
        notes.append(
            f"{at}, {finest.name} writes another answer than the vanilla host. In half precision that can be rounding; "
            "otherwise the comparison is of two different models."
        )
    for setting, work in prefills.items():
        unlike = sorted(set(work.attention) - set(prefills[vanilla].attention))
        if unlike:
            notes.append(
                f"{at}, {setting.name} runs the attention kernel(s) {', '.join(unlike)}, the vanilla host doesn't."
            )
        if setting.decides:
            again = flex.decide(**inputs, **setting.arguments)
            if [d.level for d in again] != [d.level for d in accounts[setting].decisions]:
                notes.append(f"{at}, {setting.name} decides otherwise every time; its tokens are those of one run.")
    return notes
