"""Scaler, text filter, router and its gradients, against the published implementation's numbers."""

import pytest
import torch

from tests.parity.golden import Published, case, cases, close
from tokenflex.contracts import Grid, VisualTokens
from tokenflex.conversion import layout
from tokenflex.errors import ConfigError
from tokenflex.ops.relevance import most_relevant, relevance
from tokenflex.ops.straight_through import straight_through
from tokenflex.scalers.average_pool import AveragePoolScaler


def test_no_case_is_left_out():
    assert [len(cases(name)) for name in ("scaler", "text_filter", "router_weights", "router_eval")] == [5, 12, 3, 16]
    assert [len(cases(name)) for name in ("router_train", "router_bf16")] == [4, 2]


@pytest.mark.parametrize("key", cases("scaler"))
def test_scaler(key, record):
    data, info = case("scaler", key), cases("scaler")[key]
    side = round(info["tokens_in"] ** 0.5)
    assert len(info["outputs"]) == len(data) - 1
    for size, said in info["outputs"].items():
        if not said["as_requested"]:
            with pytest.raises(ConfigError, match=f"granularity {size}"):
                layout.windows([int(size)], side)
            continue
        scaler = AveragePoolScaler(AveragePoolScaler.Config(windows=layout.windows([int(size)], side)))
        found = scaler.scale(VisualTokens(data["input"], Grid(side, side)), 0).features
        assert found.dtype == data["input"].dtype
        exact = info["dtype"] == "bfloat16"
        close(found, data[f"out_{size}"], 0.0 if exact else 1e-5, record, f"scaler {info['dtype']}")


@pytest.mark.parametrize("key", cases("text_filter"))
def test_text_filter(key, record):
    data, info = case("text_filter", key), cases("text_filter")[key]
    mask = data.get("mask", torch.ones(info["text_len"], dtype=torch.bool)).bool()
    scores = relevance(data["image"], data["text"])
    masked = scores.masked_fill(~mask, float("-inf"))
    ranked = masked[data["order"]]
    valid = ranked.isfinite()
    limit = 1e-6 if info["dtype"] == "float32" else 2e-2
    close(ranked[valid], data["similarity_sorted"][valid].float(), limit, record, f"text_filter {info['dtype']}")
    if info["dtype"] == "float32" and not info["exact_ties_among_valid"]:
        assert torch.equal(masked.argsort(descending=True, stable=True), data["order"])
    size = info["filtered_text_num"]
    found = most_relevant(data["text"], scores, mask, size, spill=True)
    assert torch.equal(found, data["filtered_text"])
    ours = most_relevant(data["text"], scores, mask, size)
    differs = [row for row in range(size) if not torch.equal(ours[row], found[row])]
    first = int(mask.sum())
    assert differs == list(range(first, first + info["masked_selected"]))
    assert not ours[first:].any()


@pytest.mark.parametrize("key", cases("router_eval"))
def test_router(key, record):
    data, info = case("router_eval", key), cases("router_eval")[key]
    parts = Published(info["router"])
    hidden, mask = data["hidden_states"].float(), data.get("text_mask")
    with torch.no_grad():
        ballots = parts.ballots(hidden, data["text"], mask)
        scores = parts.voter(ballots)
        before = torch.einsum("vlk,l->k", ballots.logits, parts.voter.weight) / len(hidden)
    close(
        before[None], data["prenorm_logits"], 1e-4 * max(1.0, before.abs().max().item()), record, "router_eval prenorm"
    )
    close(scores[None], data["logits"], 1e-4, record, "router_eval logits")
    choice = int(scores.argmax())
    assert choice == info["chosen_index"]
    shown = parts.levels(hidden)[choice].features
    if "output" in data:
        close(shown, data["output"], 1e-5, record, "router_eval output")
    else:
        close(shown.mean(1), data["output_mean_over_tokens"], 1e-5, record, "router_eval output")
    valid = torch.ones(len(data["text"]), dtype=torch.bool) if mask is None else mask.bool()
    similarity = relevance(hidden[0], data["text"])
    if "filtered_text" in data:
        taken = most_relevant(data["text"], similarity, valid, info["filtered_text_num"], spill=True)
        assert torch.equal(taken, data["filtered_text"])
    ranked = data["text_order"]
    kept = valid[ranked]
    expected = data["similarity_sorted"][kept]
    close(similarity[ranked][kept], expected, 1e-6, record, "router_eval similarity")


@pytest.mark.parametrize("key", cases("router_eval"))
def test_zero_rows_in_place_of_masked_words_change_only_the_cases_that_spill(key):
    """Our default never looks at masked rows; the published filter does where words are few."""
    data, info = case("router_eval", key), cases("router_eval")[key]
    hidden, mask = data["hidden_states"].float(), data.get("text_mask")
    with torch.no_grad():
        ours = Published(info["router"], spill=False).scores(hidden, data["text"], mask)
        theirs = Published(info["router"]).scores(hidden, data["text"], mask)
    masked_rows = data["text"][~mask.bool()] if mask is not None else data["text"][:0]
    spills = info["picks_masked_text"] and bool(masked_rows.any())
    assert torch.equal(ours, theirs) != spills


def test_attention_over_tokens_is_another_function():
    info = cases("router_eval")["g8_n3_L20_more"]
    data = case("router_eval", "g8_n3_L20_more")
    hidden = data["hidden_states"].float()
    with torch.no_grad():
        found = Published(info["router"], attend="tokens").scores(hidden, data["text"])
    assert (found[None] - data["logits"]).abs().max() > 0.01


@pytest.mark.parametrize("key", cases("router_train"))
def test_router_gradients(key, record):
    data, info = case("router_train", key), cases("router_train")[key]
    parts = Published(info["router"])
    hidden = data["hidden_states"].float().requires_grad_()
    text = data["text"].clone().requires_grad_()
    scores = parts.scores(hidden, text, data.get("text_mask"))
    close(scores[None], data["logits"], 1e-4, record, "router_train logits")
    assert int(scores.argmax()) == info["chosen_index"]
    output = straight_through([level.features for level in parts.levels(hidden)], scores)
    close(output, data["output"], 1e-5, record, "router_train output")
    loss = (data["coef_logits"][0] * scores).sum()
    assert loss.item() == pytest.approx(info["loss_logits"], abs=1e-4)
    through = (data["coef_output"] * output).sum()
    assert through.item() == pytest.approx(info["loss_output"], abs=1e-4)
    prefix = "grad_both/" if any(name.startswith("grad_both/") for name in data) else "grad_logits/"
    (loss + through if prefix == "grad_both/" else loss).backward()
    found = {name: parameter.grad for name, parameter in parts.names.items()}
    found |= {"hidden_states": hidden.grad, "text": text.grad}
    expected = {name.removeprefix(prefix): tensor for name, tensor in data.items() if name.startswith(prefix)}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        ours = torch.zeros_like(gradient) if found[name] is None else found[name].view_as(gradient)
        if not gradient.any():
            assert not ours.any()
            continue
        close(ours, gradient, 1e-4, record, "router_train gradients (relative)", relative=True)


@pytest.mark.parametrize("key", cases("router_bf16"))
def test_router_in_half_precision(key, record):
    data, info = case("router_bf16", key), cases("router_bf16")[key]
    bf16 = Published(info["router"], dtype=torch.bfloat16)
    with torch.no_grad():
        found = bf16.scores(data["hidden_states"].bfloat16(), data["text"].bfloat16(), data.get("text_mask"))
    close(found[None].float(), data["logits"].float(), 0.05, record, "router_bf16 logits")
    assert int(found.argmax()) == info["chosen_index"]
    full = Published(info["router"])
    with torch.no_grad():
        found = full.scores(data["hidden_states"].float(), data["text"].float(), data.get("text_mask"))
    close(found[None], data["logits_f32"].float(), 1e-4, record, "router_bf16 logits_f32")
    assert int(found.argmax()) == info["chosen_index_f32"]
