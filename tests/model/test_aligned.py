"""Outputs at the caller's positions: every word has its own, and the rest holds zeros."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from transformers import AutoModelForImageTextToText

import tokenflex
from tests.conftest import TEXTS
from tests.hosts.served import served
from tokenflex.errors import ConfigError, InputError
from tokenflex.model import columns
from tokenflex.policies.constant import ConstantPolicy
from tokenflex.testing.host_bench import ROWS
from tokenflex.testing.tiny_hosts import tiny_llava_next
from tokenflex.testing.zoo.recipe import A_VIDEO, AN_IMAGE

LEVELS = (0, 2, 1)


@pytest.fixture(autouse=True)
def _as_by_default(flex):
    flex.batching, flex.config.align = "auto", None
    yield
    flex.batching, flex.config.align = "auto", None


@pytest.fixture
def words(inputs):
    """The batch with a label on every word but a row's first, which nothing predicts."""
    ids, first = inputs["input_ids"], inputs["attention_mask"].argmax(-1)
    labels = ids.masked_fill(ids < 5, -100)
    labels[torch.arange(len(ids)), first] = -100
    return {**inputs, "labels": labels}


def counted(module, call):
    """(Result, vectors that a module was given.)"""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:-1].numel()))
    try:
        return call(), sum(seen)
    finally:
        handle.remove()


def loss_of(logits, labels):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def check_columns(flex, inputs, levels):
    """The laws of a map from positions to columns."""
    rows, _ = flex.in_rows(inputs, levels, None, None)
    places, index = columns.of_positions(rows), rows.whole.index
    shown = rows.whole.inputs["input_ids"] is inputs["input_ids"]
    mask = rows.whole.inputs.get("attention_mask")
    real = torch.ones_like(index) if mask is None else mask
    assert places.shape == inputs["input_ids"].shape
    for row in range(len(index)):
        seen = places[row][places[row] >= 0]
        assert bool((seen.diff() >= 0).all()), "outputs are out of order"
        there = set(real[row].nonzero().flatten().tolist())
        assert there <= set(seen.tolist()), "an output is missing"
        assert shown or there == set(seen.tolist()), "padding has an output"
        for column in range(index.shape[1]):
            position = int(index[row, column])
            if position < 0:
                continue
            assert places[row, position] == column, "a word has another's output"
            if position and column and real[row, column - 1]:
                assert places[row, position - 1] == column - 1, "what predicts a word doesn't stand in front of it"
    for span, tokens in zip(rows.batch.spans, rows.whole.tokens, strict=True):
        mine = places[span.row, span.at]
        assert int((mine >= 0).sum()) >= min(tokens, len(span.at))
        assert mine[-1] == mine.max(), "an image's last output isn't at its last placeholder"


@settings(max_examples=15, deadline=None)
@given(data=st.data(), side=st.sampled_from(["left", "right"]))
def test_columns_of_positions(flex, batch, data, side):
    piece = st.sampled_from(["<image>", "w1", "w2 w3", "w4"])
    texts = data.draw(st.lists(st.lists(piece, min_size=1, max_size=4), min_size=1, max_size=3))
    inputs = batch(*(" ".join(("w9", *pieces)) for pieces in texts), side=side)
    count = sum(pieces.count("<image>") for pieces in texts)
    check_columns(flex, inputs, data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))


@pytest.mark.parametrize("name", ["qwen3_vl", "internvl", "idefics3", "pixtral", "llava_onevision", "minicpm_ocr"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_columns_of_other_hosts(name, side):
    """Also of videos, whose frames have words between them, and where rows of an image have words behind them."""
    tiny = served("mistral3" if name == "pixtral" else name)
    flex = tokenflex.wrap(tiny.build(), router="constant", voter="mean")
    rows = (*ROWS, (7, A_VIDEO, 8, AN_IMAGE)) if name == "qwen3_vl" else ROWS
    inputs = tiny.batch(flex.host.config, rows, side=side)
    spans = len(flex.adapter.read(inputs).spans)
    check_columns(flex, inputs, [(0, 3, 1)[i % 3] for i in range(spans)])


def test_at_the_finest_level_it_is_the_host(host, flex, inputs):
    with torch.no_grad():
        expected = host(**inputs, output_hidden_states=True)
        found = flex(**inputs, level="finest", align="input", output_hidden_states=True)
        body = flex.base_model(**inputs, level="finest").last_hidden_state
    assert torch.equal(found.logits, expected.logits)
    assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
    assert torch.equal(body, host.model(**inputs).last_hidden_state)


def test_words_have_their_own_outputs_and_the_rest_zeros(flex, inputs):
    flex.batching = "padded"
    with torch.no_grad():
        compact = flex(**inputs, level=LEVELS, output_hidden_states=True)
        found = flex(**inputs, level=LEVELS, align="input", output_hidden_states=True)
        rows, _ = flex.in_rows(inputs, LEVELS, None, None)
    index, places = rows.whole.index, columns.of_positions(rows)
    which, column = (index >= 0).nonzero(as_tuple=True)
    pairs = [(found.logits, compact.logits), *zip(found.hidden_states, compact.hidden_states, strict=True)]
    for mine, short in pairs:
        assert mine.shape[:2] == inputs["input_ids"].shape
        assert torch.equal(mine[which, index[which, column]], short[which, column])
        assert bool((mine[places < 0] == 0).all())
    assert int((places < 0).sum()) > 500
    assert found.decisions == compact.decisions or [d.level for d in found.decisions] == list(LEVELS)


@pytest.mark.parametrize("batching", ["auto", "padded", "grouped"])
def test_a_client_finds_the_models_loss(flex, words, batching):
    """With the labels that it passed; every label's logits stand where it looks for them."""
    flex.batching = batching
    with torch.no_grad():
        compact = flex(**words, level=LEVELS)
        found = flex(**words, level=LEVELS, align="input")
    assert torch.allclose(found.loss, compact.loss, atol=1e-6)
    assert torch.allclose(loss_of(found.logits, words["labels"]), compact.loss, atol=1e-5)


def test_the_configs_default_and_the_calls(flex, inputs):
    flex.config.align = "input"
    with torch.no_grad():
        assert flex(**inputs, level=0).logits.shape[:2] == inputs["input_ids"].shape
        assert flex(**inputs, level=0, align="compact").logits.shape[1] < inputs["input_ids"].shape[1]
        flex.config.align = "compact"
        assert flex(**inputs, level=0).logits.shape[1] < inputs["input_ids"].shape[1]
    with pytest.raises(ConfigError, match=r"align='inputs'; use one of 'compact', 'input'"):
        flex.config.align = "inputs"
    with pytest.raises(InputError, match=r"align='caller'; use one of"):
        flex(**inputs, align="caller")
    with pytest.raises(InputError, match="Did you mean align"):
        flex(**inputs, aligned="input")
    with pytest.raises(InputError, match="only forward"):
        flex.generate(**inputs, align="input", max_new_tokens=1)


def test_it_is_saved_with_the_model(left, tmp_path):
    flex = tokenflex.wrap(tiny_llava_next(), router="constant", voter="mean")
    flex.save_pretrained(tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "config.json").read_text()).get("align") is None
    flex.config.align = "input"
    flex.save_pretrained(tmp_path / "flex")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "flex")
    assert again.config.align == "input"
    assert not hasattr(again.host.config, "align")
    with torch.no_grad():
        assert again(**left, level=0).logits.shape[:2] == left["input_ids"].shape


@pytest.mark.parametrize("keep", [1, 4, 400, torch.tensor([-1, 3, -6]), torch.tensor([0])])
def test_logits_to_keep_counts_in_the_callers_positions(flex, inputs, keep):
    with torch.no_grad():
        whole = flex(**inputs, level=LEVELS, align="input").logits
        call = lambda: flex(**inputs, level=LEVELS, align="input", logits_to_keep=keep).logits  # noqa: E731
        found, computed = counted(flex.host.lm_head, call)
    expected = whole[:, keep] if isinstance(keep, torch.Tensor) else whole[:, -keep:]
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)
    if Version(transformers.__version__) >= Version("5.24"):  # the host's own slicing before its head
        assert computed <= expected.shape[:2].numel()


def test_logits_to_keep_of_a_host_that_computes_all(batch):
    tiny = served("minicpmv4_6")
    flex = tokenflex.wrap(tiny.build(), router="constant", voter="mean")
    inputs = tiny.batch(flex.host.config, ROWS)
    with torch.no_grad():
        whole = flex(**inputs, level=0, align="input").logits
        assert torch.equal(flex(**inputs, level=0, align="input", logits_to_keep=2).logits, whole[:, -2:])


@pytest.mark.parametrize("keep", [True, -1, 1.5, torch.ones(3, 2, dtype=torch.bool)])
def test_logits_to_keep_that_name_no_positions(flex, left, keep):
    with pytest.raises(InputError, match="logits_to_keep is"):
        flex(**left, level=0, align="input", logits_to_keep=keep)


def test_attention_has_no_place_there(flex, left):
    with pytest.raises(InputError, match="attention is between the tokens of the shortened sequence"):
        flex(**left, level=0, align="input", output_attentions=True)


def test_outputs_without_names(flex, left):
    with torch.no_grad():
        named = flex(**left, level=0, align="input")
        found = flex(**left, level=0, align="input", return_dict=False)
    assert isinstance(found, tuple)
    assert torch.equal(found[0], named.logits)


@pytest.mark.parametrize("align", ["input", "compact"])
@pytest.mark.parametrize("level", [0, 2, "finest"])
def test_labels_that_are_shifted_already(flex, words, level, align):
    shifted = F.pad(words["labels"][:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        expected = flex(**words, level=level).loss
        found = flex(**words, shift_labels=shifted, level=level, align=align).loss
    assert torch.allclose(found, expected, atol=1e-6)


def test_shifted_labels_that_nothing_predicts(flex, left):
    ids = left["input_ids"]
    with pytest.raises(InputError, match=r"shift_labels supervise \d+ positions that have no output"):
        flex(**left, labels=ids.masked_fill(ids < 5, -100), shift_labels=ids, level=0)
    with pytest.raises(InputError, match="shift_labels: "):
        flex(**left, shift_labels=ids[:, 1:], level=0)


def test_the_backbone_gives_what_the_head_reads(flex, words):
    inputs = {name: value for name, value in words.items() if name != "labels"}
    with torch.no_grad():
        expected = flex(**inputs, level=LEVELS, align="input", logits_to_keep=60).logits
        found, computed = counted(flex.host.lm_head, lambda: flex.base_model(**inputs, level=LEVELS, use_cache=False))
        whole = flex.base_model(**inputs, level=LEVELS)
    assert computed == 0
    assert [d.level for d in found.decisions] == list(LEVELS)
    assert torch.allclose(found.last_hidden_state, whole.last_hidden_state, atol=1e-5)
    logits = flex.get_output_embeddings()(found.last_hidden_state[:, -60:])
    assert torch.allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("batching", ["padded", "grouped"])
def test_gradients_through_the_backbone_are_the_models(words, batching):
    """Row by row padded or apart, they are those of the model's own loss."""
    flex = tokenflex.wrap(tiny_llava_next(), router="constant", voter="mean").train()
    flex.batching = batching
    flex(**words, level=LEVELS).loss.backward()
    expected = {name: p.grad.clone() for name, p in flex.host.named_parameters() if p.grad is not None}
    flex.zero_grad()
    inputs = {name: value for name, value in words.items() if name != "labels"}
    states = flex.base_model(**inputs, level=LEVELS, use_cache=False).last_hidden_state
    loss_of(flex.get_output_embeddings()(states), words["labels"]).backward()
    assert len(expected) > 20
    for name, p in flex.host.named_parameters():
        if name in expected:
            assert torch.allclose(p.grad, expected[name], atol=1e-4), name


def test_the_backbone_is_nobodys_module(flex):
    names = set(flex.state_dict())
    before = sum(p.numel() for p in flex.parameters())
    body = flex.base_model
    assert body is not flex
    assert set(flex.state_dict()) == names
    assert sum(p.numel() for p in flex.parameters()) == before
    assert {id(p) for p in body.parameters()} == {id(p) for p in flex.host.model.parameters()}
    assert body.config is flex.host.model.config
    assert body.get_input_embeddings() is flex.get_input_embeddings()
    assert type(flex.get_decoder()) is type(body)
    assert flex.get_encoder(modality="image") is flex.host.model.vision_tower
    assert flex.get_encoder() is flex
    twin = copy.deepcopy(body)
    assert twin.of_host is not body.of_host
    with pytest.raises(AttributeError):
        body.nothing_of_the_kind  # noqa: B018


def test_the_backbone_of_texts_and_embeddings(flex, batch):
    texts = batch("w1 w2 w3", "w4 w5")
    with torch.no_grad():
        expected = flex.host.model(**texts).last_hidden_state
        assert torch.equal(flex.base_model(**texts).last_hidden_state, expected)
        embeds = flex.get_input_embeddings()(texts["input_ids"])
        found = flex.base_model(inputs_embeds=embeds, attention_mask=texts["attention_mask"]).last_hidden_state
    assert torch.equal(found, expected)


def test_the_backbone_has_no_head(flex, words):
    with pytest.raises(InputError, match="labels: the backbone has no head"):
        flex.base_model(**words)
    with pytest.raises(InputError, match="Did you mean level"):
        flex.base_model(input_ids=words["input_ids"], levle=1)


@pytest.mark.parametrize("name", ["nemotron_h_omni", "qwen2_5_vl"])
def test_backbones_of_other_hosts(name):
    """One has no backbone apart from its head, and one has positions with axes."""
    tiny = served(name)
    flex = tokenflex.wrap(tiny.build(), router="constant", voter="mean", policy=ConstantPolicy.Config(level=1))
    inputs = tiny.batch(flex.host.config, ROWS)
    with torch.no_grad():
        expected = flex(**inputs, align="input", output_hidden_states=True).hidden_states[-1]
        states = flex.base_model(**inputs, use_cache=False).last_hidden_state
    assert states.shape[:2] == inputs["input_ids"].shape
    assert torch.allclose(states, expected, atol=1e-5)
    assert bool((states != 0).any())


def test_peft_around_and_inside(batch):
    peft = pytest.importorskip("peft", reason="comes with the extra [test]")
    settings = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, r=2)
    inputs = batch(*TEXTS)
    torch.manual_seed(0)
    inside = tokenflex.wrap(peft.get_peft_model(tiny_llava_next(), settings), router="constant", voter="mean").eval()
    torch.manual_seed(0)
    flex = tokenflex.wrap(tiny_llava_next(), router="constant", voter="mean")
    around = peft.get_peft_model(flex, settings).eval()
    for model, base in ((inside, inside), (around, around.get_base_model())):
        with torch.no_grad():
            logits = model(**inputs, level=1, align="input", logits_to_keep=5).logits
            states = base.base_model(**inputs, level=1).last_hidden_state
        assert torch.allclose(base.get_output_embeddings()(states[:, -5:]), logits, atol=1e-4)


def test_labels_taken_out_by_a_trainer_are_missed(flex, left):
    count = torch.tensor(3)
    with pytest.raises(InputError, match=r"Set flex\.config\.align = 'input'"):
        flex(**left, level=0, num_items_in_batch=count)
    with torch.no_grad():
        flex(**left, level=0, num_items_in_batch=count, align="input")
        flex(**left, level="finest", num_items_in_batch=count)
