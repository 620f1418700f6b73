"""Answers that escalate are, row by row, those of ``generate`` at the levels they end at; and cost what they say."""

import copy
import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import tokenflex
from tests.hosts.served import served
from tokenflex import Budget, Escalate
from tokenflex.errors import ConfigError, InputError, UnsupportedHostError
from tokenflex.model.escalation import climbing
from tokenflex.testing.zoo.recipe import A_VIDEO, AN_IMAGE

ROWS = ((1, 2, AN_IMAGE, 3), (4, 5, 6, 7, 8), (AN_IMAGE, 9, 10, AN_IMAGE, 11, 12), (3, 4, 5), (3, 7, 2, AN_IMAGE, 5, 7))
TURN = (20, 21, 22)
NEW = 4
LEVELS = (0, 2, 4)
MEASURES = ("first-margin", "mean-log-probability")


@functools.cache
def made(name):
    tiny = served(name)
    torch.manual_seed(0)
    host = tiny.build()
    return tokenflex.wrap(host, adapter=tokenflex.hosts.get(name)(host), voter="mean").eval(), tiny


def model(name="llava_next", rows=ROWS, side="left"):
    flex, tiny = made(name)
    return flex, tiny.batch(flex.host.config, rows, side=side)


def words(flex, **options):
    """Random weights would also write placeholders, which trained models never do."""
    return {"max_new_tokens": NEW, "suppress_tokens": list(flex.adapter.placeholder_ids) or None, **options}


def mixed(flex, inputs, measure, **options):
    """An `Escalate` by which some rows settle at once and others don't, with room for rounding."""
    settings = {"measure": measure, "levels": LEVELS} | options
    never = Escalate(**settings, threshold=1e9)
    out = flex.generate(**inputs, escalate=never, **words(flex, return_dict_in_generate=True))
    sure = sorted({t.confidence for d in out.decisions for t in d.tried if t.confidence is not None})
    at_first = {d.tried[0].confidence for d in out.decisions if len(d.tried) > 1}
    gaps = [(high - low, (high + low) / 2) for low, high in itertools.pairwise(sure) if low >= min(at_first)]
    between = [gap for gap in gaps if gap[1] < max(at_first)]
    return Escalate(**settings, threshold=max(between)[1])


def answers(flex, inputs, escalate, **options):
    return flex.generate(**inputs, escalate=escalate, **words(flex, **options))


def levels(out):
    return [decision.level for decision in out.decisions]


def same_as_plain(flex, inputs, out, **options):
    plain = flex.generate(**inputs, level=levels(out), **words(flex, return_dict_in_generate=True, **options))
    assert torch.equal(out.sequences, plain.sequences)
    assert torch.equal(out.compact_sequences, plain.compact_sequences)
    assert torch.equal(out.compact_attention_mask, plain.compact_attention_mask)
    return plain


@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl", "qwen3_5"])
def test_a_conversation_goes_on_from_the_cache(name):
    flex, inputs = model(name)
    out = answers(flex, inputs, mixed(flex, inputs, "first-margin"), return_dict_in_generate=True)
    plain = same_as_plain(flex, inputs, out)
    turn = torch.tensor([TURN] * len(ROWS))

    def further(first):
        ids = torch.cat([first.compact_sequences, turn], dim=1)
        mask = torch.cat([first.compact_attention_mask, torch.ones_like(turn)], dim=1)
        key = next(key for key in ("cache", "past_key_values") if key in first)
        return flex.generate(input_ids=ids, attention_mask=mask, **{key: first[key]}, **words(flex))

    assert torch.equal(further(out), further(plain))


@pytest.mark.parametrize("measure", MEASURES)
def test_every_pass_is_told(measure):
    flex, inputs = model()
    escalate = mixed(flex, inputs, measure)
    out = answers(flex, inputs, escalate, return_dict_in_generate=True)
    costs = [[flex.decide(**inputs, level=level)[i].tokens for level in range(5)] for i in range(4)]
    for decision, of_level in zip(out.decisions, costs, strict=True):
        tried = decision.tried
        assert [one.level for one in tried] == list(LEVELS[: len(tried)])
        assert decision.level == tried[-1].level
        assert decision.tokens == sum(of_level[one.level] for one in tried) == sum(one.tokens for one in tried)
        assert all(one.confidence < escalate.threshold == one.threshold for one in tried[:-1])
        if decision.level < 4:
            assert tried[-1].confidence >= escalate.threshold
            assert ">=" in tried[-1].reason
        else:
            assert tried[-1].confidence is None is tried[-1].threshold
            assert "no finer level" in tried[-1].reason
    two = [d.tried for d in out.decisions[1:3]]  # images of one row
    assert [t.confidence for t in two[0]] == [t.confidence for t in two[1]]


def passes(flex, call):
    """(rows, columns) of every call of the host, and how often the tower ran."""
    seen, tower = [], []
    inner = flex.host.get_base_model() if hasattr(flex.host, "get_base_model") else flex.host
    handles = [
        inner.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(tuple((args or (kwargs["input_ids"],))[0].shape)), with_kwargs=True
        ),
        inner.model.vision_tower.register_forward_pre_hook(lambda *_: tower.append(1)),
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return seen, len(tower)


def test_the_tower_runs_once_and_sure_rows_are_not_read_again():
    flex, inputs = model()
    escalate = mixed(flex, inputs, "first-margin")
    out = answers(flex, inputs, escalate, return_dict_in_generate=True)
    calls, tower = passes(flex, lambda: answers(flex, inputs, escalate))
    assert tower == 1
    prompts = [rows for rows, columns in calls if columns > 1]
    tried = {0: 0, 2: 1, 4: 3}  # row -> its first image
    assert sum(prompts) == sum(len(out.decisions[image].tried) for image in tried.values()) + 2  # two rows of words
    assert [rows for rows, _ in calls[-NEW:]] == [len(ROWS)] * NEW, "new tokens aren't generated together"
    assert all(columns == 1 for _, columns in calls[-NEW:])


LONG = tuple(range(1, 9))
HEADED = ((*LONG, AN_IMAGE, 3),)


@pytest.mark.parametrize("measure", MEASURES)
def test_words_in_front_of_images_cost_once(measure):
    flex, inputs = model(rows=HEADED)
    escalate = Escalate(threshold=1e9, measure=measure, levels=(0,))
    flex.batching = "grouped"
    try:
        calls, _ = passes(flex, lambda: answers(flex, inputs, escalate, max_new_tokens=1))
    finally:
        flex.batching = "auto"
    (coarse,), (fine,) = (flex.decide(**inputs, level=level) for level in (0, 4))
    around, before = 1 + len(LONG) + 1, 1 + len(LONG)
    assert [columns for _, columns in calls] == [coarse.tokens + around, fine.tokens + around - before]


def test_an_unsure_pass_of_the_first_token_ends_behind_it():
    flex, inputs = model()
    calls, _ = passes(flex, lambda: answers(flex, inputs, Escalate(threshold=1e9, levels=(0,)), max_new_tokens=9))
    assert sum(columns == 1 for _, columns in calls) in (8, 9)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_ends_of_the_scale(measure):
    flex, inputs = model()
    low = answers(flex, inputs, Escalate(threshold=-1e9, measure=measure, levels=LEVELS), return_dict_in_generate=True)
    assert levels(low) == [0] * 4
    same_as_plain(flex, inputs, low)
    high = answers(flex, inputs, Escalate(threshold=1e9, measure=measure), return_dict_in_generate=True)
    assert levels(high) == [4] * 4
    assert [len(d.tried) for d in high.decisions] == [5] * 4
    same_as_plain(flex, inputs, high)
    never = Escalate(threshold=math.inf, measure=measure)
    found = answers(flex, inputs, never, return_dict_in_generate=True)
    assert [len(d.tried) for d in found.decisions] == [1] * 4
    same_as_plain(flex, inputs, found)
    assert torch.equal(answers(flex, inputs, never), found.sequences)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("rows", [((1, 2, 3), (4, 5)), ((AN_IMAGE, 1, 2),)])
def test_words_alone_and_single_rows(rows, measure):
    flex, inputs = model(rows=rows)
    out = answers(flex, inputs, Escalate(threshold=1e9, measure=measure), return_dict_in_generate=True)
    same_as_plain(flex, inputs, out)
    assert torch.equal(answers(flex, inputs, Escalate(threshold=1e9, measure=measure)), out.sequences)


def test_videos():
    flex, inputs = model("qwen2_5_vl", ((1, A_VIDEO, 2), (3, 4, AN_IMAGE, 5), (6, A_VIDEO, A_VIDEO)))
    escalate = mixed(flex, inputs, "first-margin")
    out = answers(flex, inputs, escalate, return_dict_in_generate=True)
    same_as_plain(flex, inputs, out)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("way", ["padded", "grouped"])
def test_however_rows_are_batched(way, measure):
    flex, inputs = model()
    escalate = mixed(flex, inputs, measure)
    expected = answers(flex, inputs, escalate)
    flex.batching = way
    try:
        out = answers(flex, inputs, escalate, return_dict_in_generate=True)
        assert torch.equal(out.sequences, expected)
        same_as_plain(flex, inputs, out)
        assert torch.equal(answers(flex, inputs, escalate), expected)
    finally:
        flex.batching = "auto"


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_caches_that_are_not_joined(options):
    flex, inputs = model()
    escalate = mixed(flex, inputs, "first-margin")
    assert torch.equal(answers(flex, inputs, escalate, **options), answers(flex, inputs, escalate))


def test_the_batch_does_not_matter():
    flex, inputs = model()
    escalate = mixed(flex, inputs, "mean-log-probability")
    together = answers(flex, inputs, escalate)
    first = 0
    for i, row in enumerate(ROWS):
        _, tiny = made("llava_next")
        one = tiny.batch(flex.host.config, [row], first=first)
        first += sum(item == AN_IMAGE for item in row)
        alone = answers(flex, one, escalate)[0, one["input_ids"].shape[1] :]
        assert torch.equal(together[i, inputs["input_ids"].shape[1] :][: len(alone)], alone)


def test_the_router_is_the_start_or_never_runs():
    flex, inputs = model()
    own = [d.level for d in flex.decide(**inputs)]
    out = answers(flex, inputs, Escalate(threshold=1e9, start="router", levels=LEVELS), return_dict_in_generate=True)
    same_as_plain(flex, inputs, out)
    assert [d.tried[0].level for d in out.decisions] == own
    assert all(d.scores is not None for d in out.decisions)
    for decision in out.decisions:
        steps = [one.level for one in decision.tried]
        assert steps == sorted(steps)
        assert steps[-1] == 4
    settled = answers(flex, inputs, Escalate(threshold=-1e9, start="router"), return_dict_in_generate=True)
    assert levels(settled) == own
    coarse = [d.tokens for d in flex.decide(**inputs, budget=Budget(ratio=0.1))]
    capped = Escalate(threshold=-1e9, start="router")
    found = answers(flex, inputs, capped, budget=Budget(ratio=0.1), return_dict_in_generate=True)
    assert [d.tokens for d in found.decisions] == coarse
    called = []
    handle = flex.compressor.router.register_forward_pre_hook(lambda *_: called.append(1))
    try:
        answers(flex, inputs, Escalate(threshold=1e9))
    finally:
        handle.remove()
    assert not called


def test_images_of_a_row_go_on_together_and_never_back():
    from tokenflex.model.escalation.rungs import rungs_of

    found = rungs_of((0, 0, 2), (1, 3, 4), (0, 2, 4))
    assert found[0].levels == ((1, 3), (2, 3), (4, 4))
    assert found[2].levels == ((4,),)
    assert 1 not in found


class Once(LogitsProcessor):
    """Notes what it is shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids)
        return scores


class Enough(StoppingCriteria):
    """Ends every answer behind two tokens, counted in the caller's prompt."""

    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length + 2)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_callers_callbacks_count_in_the_callers_prompt(measure):
    flex, inputs = model()
    length = inputs["input_ids"].shape[1]
    watch = Once()
    stop = StoppingCriteriaList([Enough(length)])
    only = [[20 + i, 30 + i] for i in range(len(ROWS))]

    def allowed(row, ids):
        assert torch.equal(ids[:length], inputs["input_ids"][row])
        return only[row]

    options = {"stopping_criteria": stop, "logits_processor": [watch], "prefix_allowed_tokens_fn": allowed}
    escalate = mixed(flex, inputs, measure)
    out = answers(flex, inputs, escalate, return_dict_in_generate=True, **options)
    assert out.sequences.shape[1] == length + 2
    assert all(token in only[row] for row in range(len(ROWS)) for token in out.sequences[row, length:].tolist())
    assert all(ids.shape[1] >= length for ids in watch.seen)
    assert torch.equal(answers(flex, inputs, escalate, **options), out.sequences)


def test_lengths_count_the_callers_prompt():
    flex, inputs = model()
    length = inputs["input_ids"].shape[1]
    for measure in MEASURES:
        escalate = mixed(flex, inputs, measure)
        out = flex.generate(**inputs, escalate=escalate, max_length=length + 3, suppress_tokens=[2, 4])
        assert out.shape[1] == length + 3


@pytest.mark.parametrize("measure", MEASURES)
def test_answers_of_different_length(measure):
    """Rows that end early are padded as in one batch."""
    flex, inputs = model()
    first = answers(flex, inputs, Escalate(threshold=1e9, measure=measure), max_new_tokens=8)
    end = int(first[0, inputs["input_ids"].shape[1] + 1])
    options = {"eos_token_id": end, "max_new_tokens": 8}
    escalate = mixed(flex, inputs, measure)
    out = answers(flex, inputs, escalate, return_dict_in_generate=True, **options)
    same_as_plain(flex, inputs, out, **options)
    assert torch.equal(answers(flex, inputs, escalate, **options), out.sequences)


def test_samples():
    flex, inputs = model()
    for measure in MEASURES:
        escalate = Escalate(threshold=-1e9, measure=measure)
        torch.manual_seed(0)
        out = answers(flex, inputs, escalate, do_sample=True)
        assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


class Collector(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self):
        self.values = []

    def put(self, value):
        self.values.append(value.flatten())

    def end(self):
        self.values.append(None)


@pytest.mark.parametrize("measure", MEASURES)
def test_streamers_get_the_answer_once(measure):
    flex, inputs = model(rows=((1, AN_IMAGE, 2, 3),))
    collector = Collector()
    out = answers(flex, inputs, Escalate(threshold=1e9, measure=measure), streamer=collector)
    assert collector.values.pop() is None
    assert torch.equal(torch.cat(collector.values), out[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    tiny = served("llava_next")
    host = tiny.build().to(dtype)
    flex = tokenflex.wrap(host, adapter=tokenflex.hosts.get("llava_next")(host), router="constant", voter="mean").eval()
    inputs = tiny.batch(host.config, ROWS)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    for measure in MEASURES:
        out = answers(flex, inputs, mixed(flex, inputs, measure), return_dict_in_generate=True)
        assert all(math.isfinite(t.confidence) for d in out.decisions for t in d.tried if t.confidence is not None)
        assert out.sequences.shape == (len(ROWS), inputs["input_ids"].shape[1] + NEW)


def test_a_host_wrapped_by_peft():
    peft = pytest.importorskip("peft")
    tiny = served("llava_next")
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    host = peft.get_peft_model(tiny.build(), config).eval()
    flex = tokenflex.wrap(host, router="constant", voter="mean").eval()
    inputs = tiny.batch(flex.adapter.host.config, ROWS)
    for measure in MEASURES:
        escalate = mixed(flex, inputs, measure)
        out = answers(flex, inputs, escalate, return_dict_in_generate=True)
        same_as_plain(flex, inputs, out)
        assert torch.equal(answers(flex, inputs, escalate), out.sequences)


def test_the_caller_keeps_what_was_given():
    flex, inputs = model()
    before = {name: value.clone() for name, value in inputs.items()}
    options = words(flex)
    kept = copy.copy(options)
    flex.generate(**inputs, escalate=Escalate(threshold=1e9), **options)
    assert options == kept
    assert all(torch.equal(before[name], value) for name, value in inputs.items())


REFUSED = [
    ({"num_beams": 2}, "one answer per row"),
    ({"num_return_sequences": 2, "do_sample": True}, "one answer per row"),
    ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
    ({"assistant_model": object()}, "assistant_model"),
    ({"logits_to_keep": 1}, "logits_to_keep"),
    ({"level": 2}, "forces the level"),
    ({"budget": 0.3}, "start='router'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[next(iter(one)) for one, _ in REFUSED])
def test_refusals(options, message):
    flex, inputs = model()
    with pytest.raises(InputError, match=message):
        flex.generate(**inputs, escalate=Escalate(threshold=0.5), max_new_tokens=2, **options)


def test_more_refusals():
    flex, inputs = model()
    for wrong in (0.9, "yes", {"threshold": 0.5}):
        with pytest.raises(InputError, match="Escalate"):
            flex.generate(**inputs, escalate=wrong, max_new_tokens=2)
    with pytest.raises(InputError, match="nothing was"):
        flex.generate(**inputs, escalate=True, max_new_tokens=2)
    with pytest.raises(InputError, match="threshold of this Escalate isn't known"):
        flex.generate(**inputs, escalate=Escalate(), max_new_tokens=2)
    with pytest.raises(InputError, match="out of range"):
        flex.generate(**inputs, escalate=Escalate(threshold=0.5, levels=(0, 9)), max_new_tokens=2)
    asked = Escalate(threshold=0.5, start="router")
    with pytest.raises(InputError, match="ceiling"):
        flex.generate(**inputs, escalate=asked, budget=Budget(ceiling=2), max_new_tokens=2)
    with pytest.raises(InputError, match="Did you mean escalate"):
        flex.generate(**inputs, escalte=Escalate(threshold=0.5), max_new_tokens=2)
    asked = Escalate(threshold=0.5, measure="min-margin")
    with pytest.raises(InputError, match="other samples"):
        flex.generate(**inputs, escalate=asked, max_new_tokens=2, do_sample=True, return_dict_in_generate=True)
    for call in (flex, flex.decide, flex.export):
        with pytest.raises(InputError, match="only generate"):
            call(**inputs, escalate=Escalate(threshold=0.5))
    embeddings = flex.get_input_embeddings()(torch.tensor([[20, 21]]))
    with pytest.raises(InputError, match="inputs_embeds only"):
        flex.generate(inputs_embeds=embeddings, escalate=Escalate(threshold=0.5), max_new_tokens=2)
    out = flex.generate(**inputs, level=0, return_dict_in_generate=True, max_new_tokens=2)
    held = {key: out[key] for key in ("cache", "past_key_values") if key in out.keys()}  # noqa: SIM118
    ids = torch.cat([out.compact_sequences, torch.tensor([TURN] * len(ROWS))], dim=1)
    with pytest.raises(InputError, match="belongs to one call"):
        flex.generate(input_ids=ids, **held, escalate=Escalate(threshold=0.5), max_new_tokens=2)
    assert flex.generate(**inputs, escalate=False, level=0, max_new_tokens=2).shape == out.sequences.shape


def test_processes_in_step(monkeypatch):
    monkeypatch.setattr(climbing, "in_step", lambda host: True)
    flex, inputs = model()
    with pytest.raises(InputError, match="processes that share it"):
        flex.generate(**inputs, escalate=Escalate(threshold=0.5), max_new_tokens=2)


def test_a_host_that_shows_no_scores():
    flex, inputs = model("janus")
    with pytest.raises(UnsupportedHostError, match="logits_processor"):
        flex.generate(**inputs, escalate=Escalate(threshold=0.5), max_new_tokens=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"risk": 0}, {"risk": 1}, {"risk": "0.1"}, {"risk": math.nan}, {"confidence": 95}, {"confidence": True},
        {"threshold": math.nan}, {"threshold": -math.inf}, {"threshold": "high"}, {"start": "finest"},
        {"levels": ()}, {"levels": 3}, {"levels": ("fine",)}, {"measure": 3}, {"measure": Budget(ratio=0.5)},
        {"calibrated": {}},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_are_none(wrong):
    with pytest.raises(ConfigError):
        Escalate(**wrong)


def test_a_measure_that_nobody_knows():
    with pytest.raises(tokenflex.errors.TokenFlexError, match="Did you mean 'first-margin'"):
        Escalate(measure="first-margn")


def test_ladders():
    assert Escalate().ladder(5) == (0, 1, 2, 3, 4)
    assert Escalate(levels=(3, 0, 3)).ladder(5) == (0, 3, 4)
    assert Escalate(levels=["coarsest", "finest"]).ladder(5) == (0, 4)
    assert replace(Escalate(levels=[0]), risk=0.1).ladder(2) == (0, 1)


@pytest.mark.parametrize("measure", MEASURES)
def test_levels_that_are_smaller_images(measure):
    """Every size is encoded when it is tried, and only of rows that get there."""
    tiny = served("qwen2_5_vl")
    torch.manual_seed(0)
    host = tiny.build()
    flex = tokenflex.wrap(host, scaler="resolution", router="constant", voter="mean").eval()
    inputs = tiny.batch(host.config, ROWS)
    finest = flex.compressor.num_levels - 1
    escalate = mixed(flex, inputs, measure, levels=(0, finest - 1))
    out = answers(flex, inputs, escalate, return_dict_in_generate=True)
    assert len({len(d.tried) for d in out.decisions}) > 1
    same_as_plain(flex, inputs, out)
    assert torch.equal(answers(flex, inputs, escalate), out.sequences)
