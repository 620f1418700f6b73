"""Rows of different length in groups: the padded call's outputs, at less than its cost; padded where it can't be."""

import copy
import functools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packaging.version import Version
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LogitsProcessor

import tokenflex
from tests.hosts.served import served
from tokenflex.errors import ConfigError
from tokenflex.hosts import continuing, grouped
from tokenflex.testing.host_bench import labels_of
from tokenflex.testing.ragged_checks import LEFT_BEHIND
from tokenflex.testing.zoo.recipe import AN_IMAGE
from tokenflex.training.levels import level_feedback

HOSTS = [
    ("llava_next", "span"),
    ("llava_onevision", "span"),
    ("qwen2_5_vl", "span"),
    ("qwen2_5_vl", "compact"),
    ("qwen3_vl", "span"),
    ("gemma3", "span"),
    ("internvl", "span"),
    ("qwen3_5", "span"),
]
ROWS = ((1, 2, AN_IMAGE, 3), (4, 5, 6, 7, 8), (AN_IMAGE, 9, 10, AN_IMAGE, 11, 12), (3, 4, 5), (3, AN_IMAGE, 5, 7))
LEVELS = [1, 3, 0, 2]
NEW = 4


def model(name, positions="span"):
    tiny = served(name)
    host = tiny.build()
    options = {} if positions == "span" else {"positions": positions}
    adapter = tokenflex.hosts.get(name)(host, **options)
    flex = tokenflex.wrap(host, adapter=adapter, router="constant", voter="mean")
    return flex, lambda side="left": tiny.batch(host.config, ROWS, side=side)


def levels(flex, inputs):
    count = len(flex.decide(**inputs))
    return [LEVELS[i % len(LEVELS)] for i in range(count)]


def both(flex, call):
    """(padded, grouped) results from the same seed, and the rows of every call of the host in the grouped way."""
    found, seen = [], []
    for way in ("padded", "grouped"):
        flex.batching = way
        seen.clear()
        handle = flex.host.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(tuple((args or (kwargs["input_ids"],))[0].shape)), with_kwargs=True
        )
        torch.manual_seed(0)
        try:
            found.append(call())
        finally:
            handle.remove()
    return *found, seen


def words(flex, **options):
    counts = {"max_new_tokens": NEW, "min_new_tokens": NEW, "suppress_tokens": list(flex.adapter.placeholder_ids)}
    return counts | {"return_dict_in_generate": True, "output_logits": True, "output_scores": True} | options


def close(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "positions"), HOSTS)
@torch.no_grad()
def test_generate(name, positions, side):
    flex, batch = model(name, positions)
    inputs = batch(side)
    chosen = levels(flex, inputs)
    padded, found, calls = both(flex, lambda: flex.generate(**inputs, level=chosen, **words(flex)))
    assert [len(ROWS)] != [rows for rows, _ in calls[:1]], "nothing was grouped"
    assert [rows for rows, _ in calls[-NEW:]] == [len(ROWS)] * NEW, "new tokens aren't generated together"
    assert torch.equal(found.sequences, padded.sequences)
    assert torch.equal(found.compact_sequences, padded.compact_sequences)
    assert torch.equal(found.compact_attention_mask, padded.compact_attention_mask)
    close(found.logits, padded.logits)
    close(found.scores, padded.scores)
    assert [d.level for d in found.decisions] == chosen
    close(*(second_turn(flex, output).logits for output in (padded, found)))


def second_turn(flex, out):
    turn = torch.tensor([[20, 21, 22]] * len(out.sequences))
    ids = torch.cat([out.compact_sequences, turn], dim=1)
    mask = torch.cat([out.compact_attention_mask, torch.ones_like(turn)], dim=1)
    cache = {continuing.name_of_cache(out): continuing.cache_of(out)}
    return flex.generate(input_ids=ids, attention_mask=mask, **cache, **words(flex))


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True},
        {"do_sample": True, "num_return_sequences": 3, "temperature": 2.0, "top_k": 9},
        {"num_beams": 2},
        {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True},
        {"repetition_penalty": 1.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "gemma3", "qwen3_5"])
@torch.no_grad()
def test_ways_of_decoding(name, options):
    flex, batch = model(name)
    inputs = batch()
    chosen = levels(flex, inputs)
    padded, found, calls = both(flex, lambda: flex.generate(**inputs, level=chosen, **words(flex, **options)))
    assert len(ROWS) > calls[0][0]
    assert torch.equal(found.sequences, padded.sequences)
    assert torch.equal(found.compact_sequences, padded.compact_sequences)
    if "num_beams" not in options:
        close(found.logits, padded.logits)


class Noting(LogitsProcessor):
    """Notes what it is shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids.clone())
        return scores


@torch.no_grad()
def test_callbacks_and_lengths_are_those_of_the_padded_call():
    flex, batch = model("llava_next")
    inputs = batch()
    chosen = levels(flex, inputs)
    length = inputs["input_ids"].shape[1]

    class Streamer:
        def __init__(self):
            self.put_in = []

        def put(self, value):
            self.put_in.append(value.clone())

        def end(self):
            self.put_in.append(None)

    notes = []

    def call():
        notes.append((Noting(), Streamer()))
        noting, streamer = notes[-1]
        return flex.generate(
            **inputs, level=chosen, max_length=length + 3, logits_processor=[noting], streamer=streamer
        )

    padded, found, _ = both(flex, call)
    assert torch.equal(padded, found)
    assert found.shape[1] <= length + 3
    (one, first), (other, second) = notes
    assert len(one.seen) == len(other.seen)
    assert all(torch.equal(a, b) for a, b in zip(one.seen, other.seen, strict=True))
    assert len(first.put_in) == len(second.put_in)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first.put_in, second.put_in, strict=True))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "positions"), HOSTS)
def test_forward_with_gradients(name, positions, side):
    flex, batch = model(name, positions)
    inputs = batch(side)
    chosen = levels(flex, inputs)
    real = flex.prepare(inputs, chosen)[0].inputs["attention_mask"] != 0
    for share in ({}, {"num_items_in_batch": torch.tensor(17)}):
        given = {**inputs, "labels": labels_of(inputs), **share}
        grads = []

        def call(given=given, grads=grads):
            flex.zero_grad()
            out = flex(**given, level=chosen, use_cache=False)
            out.loss.backward()
            grads.append([p.grad.clone() for p in flex.host.parameters() if p.grad is not None])
            return out

        padded, found, calls = both(flex, call)
        assert len(calls) > 1
        assert found.keys() - LEFT_BEHIND == padded.keys() - LEFT_BEHIND
        torch.testing.assert_close(found.loss, padded.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.logits[real], padded.logits[real], atol=2e-4, rtol=1e-4)
        assert not found.logits[~real].any()
        assert [d.level for d in found.decisions] == chosen
        assert len(grads[0]) == len(grads[1])
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4 * max(1.0, float(one.abs().max())), rtol=1e-3)


@torch.no_grad()
def test_rows_without_targets_take_no_part_in_the_loss():
    flex, batch = model("llava_next")
    inputs = batch("right")
    labels = labels_of(inputs)
    labels[1:4] = -100
    chosen = levels(flex, inputs)
    padded, found, calls = both(flex, lambda: flex(**inputs, labels=labels, level=chosen).loss)
    assert len(calls) > 1
    torch.testing.assert_close(found, padded, rtol=1e-5, atol=1e-6)
    labels[:] = -100
    padded, found, calls = both(flex, lambda: flex(**inputs, labels=labels, level=chosen).loss)
    assert len(calls) == 1
    assert padded.isnan() == found.isnan()


@torch.no_grad()
def test_last_logits_only():
    flex, batch = model("llava_next")
    inputs = batch()
    chosen = levels(flex, inputs)
    padded, found, calls = both(flex, lambda: flex(**inputs, level=chosen, logits_to_keep=1))
    assert len(calls) > 1
    assert found.logits.shape == padded.logits.shape == (len(ROWS), 1, padded.logits.shape[-1])
    close([found.logits], [padded.logits])


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_the_finest_level(name):
    """Nothing is shortened, so the caller's own tensors go to the host in the padded call."""
    flex, batch = model(name)
    inputs = batch()
    padded, found, calls = both(flex, lambda: flex.generate(**inputs, level="finest", **words(flex)))
    assert len(ROWS) > calls[0][0]
    assert torch.equal(found.sequences, padded.sequences)
    close(found.logits, padded.logits)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_text_alone(name):
    flex, _ = model(name)
    text = served(name).batch(flex.host.config, ((1, 2, 3), (4, 5, 6, 7, 8, 9)))
    padded, found, calls = both(flex, lambda: flex(**text, use_cache=True))
    assert len(calls) == 2
    real = text["attention_mask"] != 0
    close([found.logits[real]], [padded.logits[real]])
    step = {"input_ids": torch.tensor([[20], [21]]), "use_cache": True}
    mask = torch.cat([text["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
    further = [
        flex(**step, attention_mask=mask, **{continuing.name_of_cache(out): continuing.cache_of(out)}).logits
        for out in (padded, found)
    ]
    close([further[0]], [further[1]])


FORWARD = {
    "output_attentions": True,
    "output_hidden_states": True,
    "return_dict": False,
    "logits_to_keep": 3,
    "labels": "on padding",
}
ANSWERS = {
    "cache_implementation": "static",
    "use_cache": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "prefill_chunk_size": 8,
    "guidance_scale": 1.5,
    "past_key_values": "own",
}


@pytest.mark.parametrize("option", FORWARD)
@torch.no_grad()
def test_options_of_forward_that_stay_padded(option):
    flex, batch = model("llava_next")
    inputs = batch("right")
    value = FORWARD[option]
    if option == "labels":
        value = torch.where(inputs["attention_mask"] == 0, 20, labels_of(inputs))
    padded, found, calls = both(flex, lambda: flex(**inputs, level="finest", **{option: value}))
    assert calls == [tuple(inputs["input_ids"].shape)]
    for one, other in zip(padded[:1], found[:1], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("option", ANSWERS)
@torch.no_grad()
def test_options_of_generate_that_stay_padded(option):
    flex, batch = model("llava_next")
    inputs = batch()
    chosen = levels(flex, inputs)

    def call():
        own = {option: ANSWERS[option]}
        if option == "past_key_values":
            own = {option: DynamicCache(config=flex.host.config.get_text_config())}
        return flex.generate(**inputs, level=chosen, max_new_tokens=NEW, **own)

    padded, found, calls = both(flex, call)
    assert len(ROWS) == calls[0][0]
    assert torch.equal(padded, found)


@torch.no_grad()
def test_a_row_that_ends_with_a_image_stays_padded():
    flex, _ = model("internvl")
    inputs = served("internvl").batch(flex.host.config, ((1, 2, AN_IMAGE), (3, 4, 5, AN_IMAGE, 6)))
    inputs["input_ids"][0, -1] = flex.host.config.image_token_id
    tail = inputs["input_ids"][0] == flex.host.config.image_token_id
    inputs["input_ids"][0, tail.nonzero()[0]] = 20
    _, _, calls = both(flex, lambda: flex.generate(**inputs, level="finest", max_new_tokens=2))
    assert calls[0][0] == 2


@torch.no_grad()
def test_equal_lengths_are_one_call():
    flex, _ = model("llava_next")
    inputs = served("llava_next").batch(flex.host.config, ((1, 2, 3, 4), (5, 6, 7, 8)))
    padded, found, calls = both(flex, lambda: flex(**inputs).logits)
    assert calls == [tuple(inputs["input_ids"].shape)]
    assert torch.equal(padded, found)
    _, _, calls = both(flex, lambda: flex.generate(**inputs, max_new_tokens=1))
    assert calls == [tuple(inputs["input_ids"].shape)]


def test_a_setting_of_the_session(tmp_path):
    flex, _ = model("llava")
    assert flex.batching == "auto"
    with pytest.raises(ConfigError, match=r"batching='packed'; use one of 'auto', 'padded', 'grouped'"):
        flex.batching = "packed"
    flex.batching = "padded"
    assert copy.deepcopy(flex).batching == "padded"
    flex.save_parts(tmp_path)
    assert tokenflex.load_parts(tmp_path, host=flex.host).batching == "auto"


def test_processes_that_train_together_stay_padded(monkeypatch):
    flex, batch = model("llava")
    inputs = batch()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    _, _, calls = both(flex, lambda: flex(**inputs, level=0))
    assert len(calls) == 1
    with torch.no_grad():
        _, _, calls = both(flex, lambda: flex(**inputs, level=0))
        assert len(calls) > 1
        next(flex.host.parameters()).ds_id = 0
        _, _, calls = both(flex, lambda: flex(**inputs, level=0))
        assert len(calls) == 1


@functools.cache
def kept(name):
    """One model for all examples."""
    return model(name)[0]


MIXES = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 120)), min_size=2, max_size=5)


@pytest.mark.skipif(Version(torch.__version__) < Version("2.14"), reason="older versions count attention otherwise")
@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl"])
@given(MIXES, st.lists(st.integers(0, 4), min_size=10, max_size=10), st.sampled_from([1, 64]))
@example([(0, 13), (1, 4)], [0] * 10, 1)
@settings(deadline=None, max_examples=8)
@torch.no_grad()
def test_auto_never_costs_more_than_padded(name, mix, chosen, call):
    """In FLOPs, for whole answers and for single passes."""
    flex = kept(name)
    rows = [((AN_IMAGE,) * images + tuple(i % 40 for i in range(size))) for images, size in mix]
    inputs = served(name).batch(flex.host.config, rows)
    level = chosen[: sum(images for images, _ in mix)] or None
    before, grouped.CALL = grouped.CALL, call
    try:
        for run in (flex, lambda **given: flex.generate(**given, max_new_tokens=2, min_new_tokens=2)):
            work = {}
            for way in ("padded", "auto"):
                flex.batching = way
                with FlopCounterMode(display=False) as counter:
                    run(**inputs, level=level)
                work[way] = counter.get_total_flops()
            assert work["auto"] <= work["padded"]
    finally:
        grouped.CALL = before


@torch.no_grad()
def test_auto_groups_what_is_worth_it():
    flex, _ = model("llava_next")
    short, long = tuple(range(1, 30)), tuple(i % 40 for i in range(400))
    inputs = served("llava_next").batch(flex.host.config, (short, (*long, AN_IMAGE, 1), short, short))
    shapes, size = [], flex.prepare(inputs, 0)[0].inputs["input_ids"].shape[1]
    flex.host.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    flex(**inputs, level=0)
    assert shapes == [(3, 30), (1, size)]
    shapes.clear()
    flex.generate(**inputs, level=0, max_new_tokens=2, min_new_tokens=2)
    assert shapes == [(3, 29), (1, size - 1), (4, 1), (4, 1)]
    shapes.clear()
    assert torch.equal(flex(**inputs, level="finest").logits, flex.host(**inputs).logits)
    assert shapes == [tuple(inputs["input_ids"].shape)] * 2, "the finest level is the plain host's call"


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "paligemma"])
@torch.no_grad()
def test_feedback_at_every_level(name):
    """Mean losses of every row; rows without targets are NaN either way."""
    flex, batch = model(name)
    inputs = batch("right")
    inputs["labels"] = labels_of(inputs)
    inputs["labels"][1] = -100
    encoded = flex.encode(inputs)
    padded, found, calls = both(flex, lambda: level_feedback(flex, inputs, encoded))
    assert (len(calls) > flex.compressor.num_levels) == (name != "paligemma")
    torch.testing.assert_close(found, padded, atol=2e-4, rtol=1e-4, equal_nan=True)
    assert found[1].isnan().all()


@pytest.mark.parametrize(("levels", "apart"), [([4] * 7 + [3], False), ([1] * 7 + [4], True)])
def test_groups_that_save_little_are_not_worth_joining_their_caches(levels, apart, monkeypatch):
    tiny = served("llava_next")
    flex = tokenflex.wrap(tiny.build(), router="constant", voter="mean")
    row = tiny.batch(flex.host.config, ((1, 2, AN_IMAGE, 3),))
    inputs = {key: torch.cat([value] * 8) for key, value in row.items()}
    monkeypatch.setattr(grouped, "CALL", 0)
    monkeypatch.setattr(grouped, "HEAD", 0)
    rows, seen = flex.host.generate, []
    monkeypatch.setattr(flex.host, "generate", lambda **given: seen.append(len(given["input_ids"])) or rows(**given))
    flex.generate(**inputs, level=levels, max_new_tokens=2)
    assert (seen[0] < 8) is apart, seen
