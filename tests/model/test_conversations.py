"""Going on from a cache: the right way gives what a cold run gives, whatever the positions; wrong ways are refused."""

import copy

import pytest
import torch
from transformers import DynamicCache

import tokenflex
from tests.hosts.served import served
from tokenflex.errors import InputError
from tokenflex.testing.zoo.recipe import AN_IMAGE

HOSTS = ["llava_next", "internvl", "gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "mistral3"]
NEW = 4
TURN = torch.tensor([[20, 21, 22], [23, 24, 25]])
ROWS = ((1, 2, AN_IMAGE, 3), (4, AN_IMAGE, 5, 6, AN_IMAGE, 7, 8))


def prepared(name, positions="span"):
    tiny = served(name)
    torch.manual_seed(0)
    host = tiny.build()
    adapter = tokenflex.hosts.get(name)
    settings = {"positions": positions} if positions != "span" else {}
    flex = tokenflex.wrap(host, adapter=adapter(host, **settings), router="constant", voter="mean")
    return flex, tiny.batch(host.config, ROWS)


def options(flex):
    """Random weights would also write placeholders, which trained models never do."""
    counts = {"max_new_tokens": NEW, "min_new_tokens": NEW, "suppress_tokens": list(flex.adapter.placeholder_ids)}
    return counts | {"return_dict_in_generate": True, "output_logits": True}


def first_turn(flex, inputs, level):
    return flex.generate(**inputs, level=level, **options(flex))


def extended(ids, mask, turn=TURN):
    return torch.cat([ids, turn], dim=1), torch.cat([mask, torch.ones_like(turn)], dim=1)


def second_turn(flex, out):
    """As the documentation says."""
    ids, mask = extended(out.compact_sequences, out.compact_attention_mask)
    return flex.generate(input_ids=ids, attention_mask=mask, **filled(out), **options(flex))


def cold(flex, inputs, out, level):
    ones = torch.ones_like(out.sequences[:, inputs["input_ids"].shape[1] :])
    ids, mask = extended(out.sequences, torch.cat([inputs["attention_mask"], ones], dim=1))
    whole = {**inputs, "input_ids": ids, "attention_mask": mask}
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in whole:
            whole[key] = torch.cat([whole[key], whole[key].new_zeros(2, ids.shape[1] - whole[key].shape[1])], dim=1)
    return first_turn(flex, whole, level)


def close(one, other):
    for a, b in zip(one.logits, other.logits, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)


def filled(out):
    """The cache under the name that this transformers gives it."""
    key = "cache" if out.get("cache") is not None else "past_key_values"
    return {key: out[key]}


@pytest.mark.parametrize("level", [0, 2, "finest"])
@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_a_second_turn_is_what_a_cold_run_gives(name, level):
    flex, inputs = prepared(name)
    out = first_turn(flex, inputs, level)
    again = second_turn(flex, out)
    close(again, cold(flex, inputs, out, level))
    assert torch.equal(again.compact_sequences[:, : -NEW - 3], out.compact_sequences)
    assert again.compact_attention_mask.shape == again.compact_sequences.shape


@pytest.mark.parametrize("positions", ["span", "compact"])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_nothing_called_in_between_changes_a_conversation(name, positions):
    flex, inputs = prepared(name, positions)
    out = first_turn(flex, inputs, 0)
    kept = copy.deepcopy(out)
    expected = second_turn(flex, out)
    tiny = served(name)
    other = tiny.batch(flex.host.config, ((9, AN_IMAGE, AN_IMAGE, AN_IMAGE, 10),))
    flex.host.generate(**other, max_new_tokens=2)
    flex.host(**other)
    tokenflex.wrap(flex.host, router="constant", voter="mean").generate(**other, level=1, max_new_tokens=2)
    flex.generate(input_ids=torch.tensor([[20, 21]]), max_new_tokens=2)
    close(second_turn(flex, kept), expected)


@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_a_third_turn(name):
    flex, inputs = prepared(name)
    out = first_turn(flex, inputs, 1)
    again = second_turn(flex, out)
    third = second_turn(flex, again)
    ones = torch.ones_like(out.sequences[:, inputs["input_ids"].shape[1] :])
    ids, mask = extended(out.sequences, torch.cat([inputs["attention_mask"], ones], dim=1))
    made = again.compact_sequences[:, -NEW:]
    longer = {"sequences": torch.cat([ids, made], dim=1)}
    whole = type(out)(longer)
    mask = torch.cat([mask, torch.ones_like(made)], dim=1)
    padded = {**inputs, "attention_mask": mask[:, : inputs["input_ids"].shape[1]]}
    close(third, cold(flex, padded, whole, 1))


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
@torch.no_grad()
def test_a_loop_over_forward_goes_on_from_its_cache(name):
    flex, inputs = prepared(name)
    inputs = served(name).batch(flex.host.config, ROWS[:1])
    out = flex(**inputs, level=0, use_cache=True)
    (cache,) = filled(out).values()
    served_other = served(name).batch(flex.host.config, ((9, AN_IMAGE, AN_IMAGE, 10),))
    flex.host(**served_other)
    turn = TURN[:1]
    stepped = flex(input_ids=turn, past_key_values=cache, use_cache=True).logits
    ids = torch.cat([inputs["input_ids"], turn], dim=1)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    whole.pop("mm_token_type_ids", None)
    expected = flex(**whole, level=0).logits[:, -3:]
    torch.testing.assert_close(stepped, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("key", ["cache", "past_key_values"])
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
@torch.no_grad()
def test_the_usual_way_is_refused_and_the_right_one_named(name, key):
    """All of ``sequences`` doesn't fit the cache, which holds the shortened prompt."""
    flex, inputs = prepared(name)
    out = first_turn(flex, inputs, 0)
    ((name_here, cache),) = filled(out).items()
    if (key, name_here) == ("cache", "past_key_values"):
        pytest.skip("before transformers 5.24 a cache is called past_key_values")
    with pytest.raises(InputError, match=r"image placeholders stand behind.*compact_sequences"):
        flex.generate(input_ids=torch.cat([out.sequences, TURN], dim=1), max_new_tokens=2, **{key: cache})


@torch.no_grad()
def test_the_usual_way_is_refused_where_no_placeholder_is_left_over():
    flex, _ = prepared("internvl")
    inputs = served("internvl").batch(flex.host.config, ((AN_IMAGE, *range(1, 20), *range(1, 20)),))
    out = first_turn(flex, inputs, 3)
    with pytest.raises(InputError, match=r"don't begin with the .* tokens that the cache holds"):
        flex.generate(input_ids=torch.cat([out.sequences, TURN[:1]], dim=1), **filled(out), max_new_tokens=2)


@torch.no_grad()
def test_other_misfits_are_refused():
    flex, inputs = prepared("internvl")
    out = first_turn(flex, inputs, 0)
    ids, mask = extended(out.compact_sequences, out.compact_attention_mask)
    with pytest.raises(InputError, match="no new token is left"):
        flex.generate(input_ids=out.compact_sequences[:, :-1], **filled(out), max_new_tokens=2)
    with pytest.raises(InputError, match="attention_mask has the shape"):
        flex.generate(input_ids=ids, attention_mask=mask[:, 1:], **filled(out), max_new_tokens=2)
    with pytest.raises(InputError, match=r"input_ids has 1 rows|don't begin"):
        flex.generate(input_ids=ids[:1], attention_mask=mask[:1], **copy.deepcopy(filled(out)), max_new_tokens=2)
    with pytest.raises(InputError, match=r"level 99|out of range"):
        flex.generate(input_ids=ids, attention_mask=mask, **filled(out), level=99, max_new_tokens=2)


@torch.no_grad()
def test_videos_without_placeholders_beside_a_filled_cache_are_refused():
    tiny = served("qwen2_5_vl")
    flex, inputs = prepared("qwen2_5_vl")
    out = first_turn(flex, inputs, 0)
    ids, mask = extended(out.compact_sequences, out.compact_attention_mask)
    with pytest.raises(InputError, match="video_grid_thw is missing"):
        flex.generate(
            input_ids=ids,
            attention_mask=mask,
            **filled(out),
            pixel_values_videos=torch.zeros(4, 8),
            max_new_tokens=2,
        )
    assert tiny is not None


@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl"])
@torch.no_grad()
def test_a_cache_of_ones_own_is_filled_and_gone_on_with(name):
    flex, inputs = prepared(name)
    expected = second_turn(flex, first_turn(flex, inputs, 1))
    cache = DynamicCache(config=flex.host.config.get_text_config())
    out = flex.generate(**inputs, level=1, past_key_values=cache, **options(flex))
    ids, mask = extended(out.compact_sequences, out.compact_attention_mask)
    again = flex.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **options(flex))
    close(again, expected)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl", "internvl"])
@torch.no_grad()
def test_a_batch_without_its_mask_generates_as_with_it(name):
    flex, inputs = prepared(name)
    assert bool((inputs["attention_mask"] == 0).any())
    expected = flex.generate(**inputs, level=1, max_new_tokens=NEW)
    decided = [d.level for d in flex.decide(**inputs)]
    bare = {key: value for key, value in inputs.items() if key != "attention_mask"}
    assert torch.equal(flex.generate(**bare, level=1, max_new_tokens=NEW), expected)
    assert [d.level for d in flex.decide(**bare)] == decided


MORE = ((30, AN_IMAGE, 31), (32, AN_IMAGE, 33, AN_IMAGE, 34, 35))


def a_turn(flex, name, out, rows):
    """A further turn with images, as the processor writes it, behind what was said."""
    turn = served(name).batch(flex.host.config, rows, first=3)
    ids = torch.cat([out.compact_sequences, turn["input_ids"]], dim=1)
    mask = torch.cat([out.compact_attention_mask, turn["attention_mask"]], dim=1)
    types = {
        key: torch.cat([torch.zeros_like(out.compact_sequences), turn[key]], dim=1)
        for key in ("token_type_ids", "mm_token_type_ids")
        if key in turn
    }
    return turn, {**turn, **types, "input_ids": ids, "attention_mask": mask, **filled(out)}


def said(out, count):
    return out.sequences[:, -count:]


@pytest.mark.parametrize("levels", [(1, 0, 3), (4, 4, 4), (0, 4, 0)])
@pytest.mark.parametrize("name", [*HOSTS, "llava", "idefics3", "lfm2_vl"])
@torch.no_grad()
def test_a_turn_with_images_is_what_the_whole_conversation_gives(name, levels):
    """The whole conversation is read at once by a `Conversation` whose cache was let go of."""
    flex, _ = prepared(name)
    inputs = served(name).batch(flex.host.config, ROWS[:1])
    reference = tokenflex.Conversation(flex)
    out = flex.generate(**inputs, level=levels[0], **options(flex))
    given = {key: value for key, value in options(flex).items() if key.startswith("m")}
    assert torch.equal(said(out, NEW)[0], reference.go_on(inputs, level=levels[0], **given).ids)
    for number, level in enumerate(levels[1:], 1):
        turn, whole = a_turn(flex, name, out, MORE[number - 1 : number])
        out = flex.generate(**whole, level=level, **options(flex))
        reference._cache.clear()
        before = [decision.level for decision in reference.decisions]
        units = len(flex.encode(turn).counts)
        expected = reference.go_on(turn, level=[*before, *[level] * units], **given)
        assert torch.equal(said(out, NEW)[0], expected.ids), "behind images, ids that were read together"
        assert [decision.level for decision in out.decisions] == [level] * units
        assert out.compact_sequences.shape[1] == len(reference._cache.held) + 1
    ids, mask = extended(out.compact_sequences, out.compact_attention_mask, TURN[:1])
    last = flex.generate(input_ids=ids, attention_mask=mask, **filled(out), **options(flex))
    reference._cache.clear()
    levels = [decision.level for decision in reference.decisions]
    expected = reference.go_on({"input_ids": TURN[:1], "attention_mask": torch.ones(1, 3)}, level=levels, **given)
    assert torch.equal(said(last, NEW)[0], expected.ids)


@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl", "qwen2_5_vl", "qwen3_vl", "mistral3"])
@torch.no_grad()
def test_turns_with_images_of_a_batch_are_those_of_its_rows(name):
    flex, inputs = prepared(name)
    out = first_turn(flex, inputs, 1)
    _, whole = a_turn(flex, name, out, MORE)
    both = flex.generate(**whole, level=[0, 2, 1], **options(flex))
    for row, levels in enumerate(([0], [2, 1])):
        alone = first_turn(flex, served(name).batch(flex.host.config, ROWS[row : row + 1], first=row), 1)
        assert torch.equal(said(alone, NEW)[0], said(out, NEW)[row])
        turn = served(name).batch(flex.host.config, MORE[row : row + 1], first=3 + row)
        ids = torch.cat([alone.compact_sequences, turn["input_ids"]], dim=1)
        more = {
            key: torch.cat([torch.zeros_like(alone.compact_sequences), turn[key]], dim=1)
            for key in ("token_type_ids", "mm_token_type_ids")
            if key in turn
        }
        given = {**turn, **more, "input_ids": ids, "attention_mask": torch.ones_like(ids), **filled(alone)}
        assert torch.equal(said(flex.generate(**given, level=levels, **options(flex)), NEW)[0], said(both, NEW)[row])


@torch.no_grad()
def test_a_turn_with_images_of_a_host_that_looks_ahead():
    flex, inputs = prepared("paligemma")
    _, whole = a_turn(flex, "paligemma", first_turn(flex, inputs, 1), MORE)
    with pytest.raises(InputError, match="images can't be put behind a cache of this host"):
        flex.generate(**whole, level=1, **options(flex))


@torch.no_grad()
def test_what_a_turn_with_images_cant_be_given():
    flex, inputs = prepared("llava")
    out = first_turn(flex, inputs, 1)
    _, whole = a_turn(flex, "llava", out, MORE)
    with pytest.raises(InputError, match="behind a conversation's cache is written once"):
        flex.generate(**whole, escalate=tokenflex.Escalate(threshold=0.5), **options(flex))
    with pytest.raises(InputError, match="don't begin with the"):
        flex.generate(**{**whole, "input_ids": whole["input_ids"] + 1}, level=1, **options(flex))
    del filled(out)[next(iter(filled(out)))].tokenflex_prompt
    with pytest.raises(InputError, match="that this model didn't fill"):
        flex.generate(**whole, level=1, **options(flex))
