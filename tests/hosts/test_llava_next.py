"""The host laws, on a tiny random LLaVA-NeXT."""

import copy

import pytest
import torch
from transformers import GenerationConfig

import tokenflex
from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError, InputError, UnsupportedHostError
from tokenflex.hosts import choosing
from tokenflex.hosts.llava_next import LlavaNextAdapter
from tokenflex.testing.host_bench import labels_of
from tokenflex.testing.tiny_hosts import tiny_llava_next

FINEST = 4


def snapshot(model):
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        dict(type(model).__dict__),
        dict(type(model.model).__dict__),
        [dict(m._forward_hooks) | dict(m._forward_pre_hooks) | dict(m._backward_hooks) for m in model.modules()],
        model.config.to_dict(),
        model.generation_config.to_dict(),
        sorted(model.__dict__),
    )


@torch.no_grad()
def test_identity_logits(host, flex, inputs):
    assert torch.equal(host(**inputs).logits, flex(**inputs, level=FINEST).logits)


def test_identity_loss_and_labels(host, flex, inputs):
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == host.config.image_token_id, -100)
    expected = host(**inputs, labels=labels)
    assert torch.equal(expected.loss, flex(**inputs, labels=labels, level=FINEST).loss)


GENERATION = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "temperature": 1.5, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "repetition penalty": {"repetition_penalty": 1.3},
}


@pytest.mark.parametrize("name", GENERATION)
@pytest.mark.parametrize("texts", ["three", "mixed"])
def test_identity_generate(host, flex, batch, name, texts):
    rows = {"three": ("w1 w2 <image> w3", "<image> w4 w5"), "mixed": ("<image> w1 <image> w2", "w3 w4", "w5 <image>")}
    inputs = batch(*rows[texts]) if name != "prompt lookup" else batch("w1 w2 w1 w2 <image> w1")
    options = {"max_new_tokens": 7, **GENERATION[name]}
    torch.manual_seed(3)
    expected = host.generate(**inputs, **options)
    torch.manual_seed(3)
    assert torch.equal(expected, flex.generate(**inputs, level=FINEST, **options))


def test_right_padded_generation_equals_left_padded(host, flex, batch):
    rows = ("w1 w2 <image> w3", "<image> w4 w5 w6 w7 :")
    right, left = batch(*rows, side="right"), batch(*rows)
    new = flex.generate(**right, level=FINEST, max_new_tokens=6)[:, right["input_ids"].shape[1] :]
    assert torch.equal(new, host.generate(**left, max_new_tokens=6)[:, left["input_ids"].shape[1] :])


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_of_mixed_levels_equals_singles(flex, batch, side):
    texts = ("w1 w2 <image> w3", "<image> w4 w5 w6 w7 :", "w8 w9", "<image> w9 <image> w3 w9 w9")
    levels = [0, 3, 2, 4]
    inputs = batch(*texts, side=side)
    together = flex(**inputs, level=levels)
    lengths = together.decisions
    first = 0
    width = together.logits.shape[1]
    for row, text in enumerate(texts):
        count = text.count("<image>")
        alone = flex(**batch(text, first=first), level=levels[first : first + count] if count else None).logits[0]
        where = slice(width - len(alone), width) if side == "left" else slice(0, len(alone))
        torch.testing.assert_close(together.logits[row, where], alone, atol=2e-5, rtol=0)
        first += count
    assert len(lengths) == 4


def test_batch_generates_as_singles(flex, batch):
    texts = ("w1 w2 <image> w3", "<image> w4 w5 w6 w7 :", "w8 w9")
    together = flex.generate(**batch(*texts), level=[1, 3], max_new_tokens=5)[:, -5:]
    for row, (text, level) in enumerate(zip(texts, ([1], [3], None), strict=True)):
        alone = flex.generate(**batch(text, first=row), level=level, max_new_tokens=5)[:, -5:]
        assert torch.equal(together[row : row + 1], alone)


def test_counts_are_known_in_advance(flex, batch):
    inputs = batch("<image> w1 <image>", "<image> <image>")
    encoded = flex.encode(inputs)
    for level in range(5):
        spliced = flex.at_levels(inputs, encoded, [level] * 4)
        assert list(spliced.tokens) == encoded.counts[:, level].tolist()
        assert [d.tokens for d in flex.decide(**inputs, level=level)] == list(spliced.tokens)
        found = (spliced.inputs["input_ids"] == 4).sum(-1).tolist()
        assert found == [sum(spliced.tokens[:2]), sum(spliced.tokens[2:])]


def test_the_same_answer_tokens_carry_loss_at_every_level(flex, left):
    labels = left["input_ids"].masked_fill(left["input_ids"] != 14, -100)
    encoded = flex.encode(left)
    for level in range(5):
        spliced = flex.at_levels({**left, "labels": labels}, encoded, [level] * 3)
        assert (spliced.inputs["labels"] == 14).sum() == (labels == 14).sum() > 0
        assert set(spliced.inputs["labels"].unique().tolist()) == {-100, 14}


def test_labels_on_placeholders_are_ignored(flex, left):
    encoded = flex.encode(left)
    for level in (0, FINEST):
        labels = flex.at_levels({**left, "labels": left["input_ids"]}, encoded, [level] * 3).inputs["labels"]
        assert not (labels == 4).any()


def test_host_is_untouched(left):
    mine = tiny_llava_next(seed=5)
    expected = mine.generate(**left, max_new_tokens=4)
    mine(**left)  # transformers installs its own recording hooks on first use
    before = snapshot(mine)
    wrapped = tokenflex.wrap(mine)
    wrapped.generate(**left, max_new_tokens=4)
    wrapped(**left, labels=labels_of(left))
    after = snapshot(mine)
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert before[0].keys() == after[0].keys()
    assert before[1:] == after[1:]
    assert torch.equal(expected, mine.generate(**left, max_new_tokens=4))


@torch.no_grad()
def test_text_only_batch_passes_through(host, flex, batch):
    inputs = batch("w1 w2 w3", "w4")
    assert torch.equal(host(**inputs).logits, flex(**inputs).logits)
    assert torch.equal(host.generate(**inputs, max_new_tokens=4), flex.generate(**inputs, max_new_tokens=4))


def test_greedy_equals_repeated_forward(flex, batch):
    inputs = batch("w1 <image> w2")
    generated = flex.generate(**inputs, level=1, max_new_tokens=4, min_new_tokens=4)[0, -4:]
    for step in range(4):
        with torch.no_grad():
            following = flex(**inputs, level=1).logits[0, -1]
        following[2] = float("-inf")
        assert int(following.argmax()) == int(generated[step])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], generated[None, step : step + 1]], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])


def test_max_length_counts_the_callers_prompt(flex, left):
    length = left["input_ids"].shape[1]
    by_length = flex.generate(**left, level=0, max_length=length + 5)
    assert by_length.shape[1] <= length + 5
    assert torch.equal(by_length, flex.generate(**left, level=0, max_new_tokens=5))
    config = GenerationConfig(max_length=length + 5, pad_token_id=0, eos_token_id=2)
    assert torch.equal(by_length, flex.generate(**left, level=0, generation_config=config))


def test_conversation_continues_from_the_compact_cache(flex, batch):
    inputs = batch("w1 <image> w2")
    out = flex.generate(**inputs, level=1, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True)
    turn = torch.tensor([[10, 11, 12]])
    ids = torch.cat([out.compact_sequences, turn], dim=1)
    continued = flex.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=out.past_key_values, max_new_tokens=4
    )
    whole = dict(inputs)
    whole["input_ids"] = torch.cat([out.sequences, turn], dim=1)
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    afresh = flex.generate(**whole, level=1, max_new_tokens=4)
    assert torch.equal(continued[:, ids.shape[1] :], afresh[:, whole["input_ids"].shape[1] :])


def test_images_that_a_filled_cache_holds_are_refused(flex, batch):
    inputs = batch("w1 <image> w2")
    out = flex.generate(**inputs, level=1, max_new_tokens=2, return_dict_in_generate=True)
    with pytest.raises(InputError, match=r"the cache holds \d+, so no new token is left|don't begin with the"):
        flex.generate(**inputs, past_key_values=out.past_key_values, max_new_tokens=2)


def test_vision_tower_runs_once(flex, left, monkeypatch):
    calls = []
    tower = flex.host.model.vision_tower
    handle = tower.register_forward_hook(lambda *a: calls.append(1))
    flex.generate(**left, max_new_tokens=3)
    handle.remove()
    assert calls == [1]


def test_forced_level_does_not_run_the_router(flex, left):
    calls = []
    handle = flex.compressor.router.register_forward_hook(lambda *a: calls.append(1))
    flex.generate(**left, level=1, max_new_tokens=2)
    assert not calls
    flex.generate(**left, max_new_tokens=2)
    handle.remove()
    assert len(calls) >= 1


def test_released_unpad_is_identity_at_the_finest_level_and_crops_elsewhere(host, left):
    released = tokenflex.wrap(host, adapter=LlavaNextAdapter(host, unpad="released"))
    geometric = tokenflex.wrap(host)
    with torch.no_grad():
        assert torch.equal(host(**left).logits, released(**left, level=FINEST).logits)
    assert released.decide(**left, level=3)[2].tokens < geometric.decide(**left, level=3)[2].tokens


def test_scaler_without_grid_goes_through(host, left):
    flex = tokenflex.wrap(host, scaler="random")
    with torch.no_grad():
        assert torch.equal(host(**left).logits, flex(**left, level=FINEST).logits)
    views = left["pixel_values"].shape[1]
    assert flex.decide(**left, level=0)[2].tokens == views * 4 + 1


def test_geometry(flex):
    assert flex.adapter.grid == Grid(8, 8)
    assert flex.adapter.dim == 32


def test_parameter_groups_are_disjoint_and_complete(flex, host):
    groups = flex.adapter.parameter_groups()
    ids = [id(p) for group in groups.values() for p in group]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in host.parameters()}
    assert any(p is host.model.image_newline for p in groups["projector"])


def test_missing_images_are_refused(flex, batch):
    inputs = batch("w1 <image> w2")
    with pytest.raises(InputError, match=r"row 0 has \d+ image placeholder tokens, and no image came with them"):
        flex(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])


def test_wrong_number_of_placeholders_is_refused(flex, batch):
    inputs = batch("w1 <image> w2")
    inputs["input_ids"][0, 10] = 9
    with pytest.raises(InputError, match="placeholder"):
        flex(**inputs)


def test_more_images_than_places_are_refused(flex, batch):
    inputs, other = batch("w1 <image> w2"), batch("w1 <image> w2 <image>")
    inputs["pixel_values"], inputs["image_sizes"] = other["pixel_values"], other["image_sizes"]
    with pytest.raises(InputError, match="holds 2 images"):
        flex(**inputs)


def test_missing_image_sizes_are_refused(flex, batch):
    inputs = batch("w1 <image> w2")
    del inputs["image_sizes"]
    with pytest.raises(InputError, match="image_sizes is missing"):
        flex(**inputs)


def test_decide_without_images_is_refused(flex, batch):
    with pytest.raises(InputError, match="no images"):
        flex.decide(**batch("w1 w2"))


@pytest.mark.parametrize("level", [5, -6, [0, 1, 7]])
def test_level_out_of_range_is_refused(flex, left, level):
    with pytest.raises(InputError, match="out of range"):
        flex(**left, level=level)


def test_wrong_number_of_levels_is_refused(flex, left):
    with pytest.raises(InputError, match="2 entries for 3 images"):
        flex(**left, level=[0, 1])


def test_bad_options_are_refused(host):
    with pytest.raises(ConfigError, match="unpad='square'"):
        LlavaNextAdapter(host, unpad="square")
    with pytest.raises(ConfigError, match="scope='all'"):
        LlavaNextAdapter(host, scope="all")


def test_full_feature_selection_is_refused():
    with pytest.raises(UnsupportedHostError, match="class token"):
        tokenflex.wrap(tiny_llava_next(vision_feature_select_strategy="full"))


def test_unknown_host_is_refused():
    with pytest.raises(UnsupportedHostError, match=r"no adapter serves Linear.*llava_next.*HostAdapter"):
        tokenflex.wrap(torch.nn.Linear(2, 2))


def test_old_transformers_is_refused(monkeypatch):
    monkeypatch.setattr(choosing.transformers, "__version__", "5.17.1")
    with pytest.raises(UnsupportedHostError, match=r"5\.17\.1 is installed.*5\.18"):
        tokenflex.wrap(tiny_llava_next())


def test_deepcopy_works(flex, left):
    twin = copy.deepcopy(flex)
    with torch.no_grad():
        assert torch.equal(twin(**left).logits, flex(**left).logits)


def test_rows_of_a_language_model_that_carries_state_are_not_packed():
    """Its layers would go on from one row to the next; the reason names them."""
    host = tiny_llava_next()
    adapter = LlavaNextAdapter(host)
    assert adapter.packing_refusal is None
    host.config.text_config.layer_types = ["full_attention", "linear_attention"]
    assert "linear_attention layers carry" in str(adapter.packing_refusal)
