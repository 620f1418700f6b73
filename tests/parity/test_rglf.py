"""RGLF losses and gradients against the published implementation's numbers."""

import pytest
import torch

from tests.parity.golden import case, cases, close
from tokenflex.ops.ranking import best_first, feedback_cross_entropy, ranking_loss, rglf_loss


def test_no_case_is_left_out():
    assert len(cases("rglf")) == 10
    assert all(len(info["values"]) == 3 for info in cases("rglf").values())


def published(scores, losses, setting):
    """Total, ranking and cross-entropy terms without our guards."""
    weights = {"rank_weight": setting["rank_loss_weight"], "ce_weight": setting["ce_loss_weight"]}
    total = rglf_loss(scores, losses, margin=setting["margin"], guard=False, **weights)
    return total, ranking_loss(scores, losses, setting["margin"]), feedback_cross_entropy(scores, losses, guard=False)


@pytest.mark.parametrize("setting", ["m0.1_ce0.1_rk1.0", "m1.0_ce0.1_rk1.0", "m1.0_ce1.0_rk1.0"])
@pytest.mark.parametrize("key", cases("rglf"))
def test_losses_and_gradients(key, setting, record):
    data, info = case("rglf", key), cases("rglf")[key]
    losses = data["lmm_losses"].float()
    poisoned = not losses.isfinite().all()
    half = info["dtype"] == "bfloat16"
    if not poisoned:
        assert torch.equal(best_first(losses), data["order"])
        assert torch.equal(losses.gather(-1, data["order"]), data["sorted_losses"].float())
    names = {"total": "grad_total", "rank": "grad_rank", "ce": "grad_ce"}
    for i, (name, gradient) in enumerate(names.items()):
        scores = data["router_logits"].float().requires_grad_()
        value = published(scores, losses, info["values"][setting])[i]
        where = "" if name == "ce" else f"{setting}/"
        expected = data[f"{where}{name}"].float()
        if poisoned:
            assert value.isnan() == expected.isnan().item()
            continue
        (found,) = torch.autograd.grad(value, scores)
        kind = f"rglf {info['dtype']}" + " (relative)" * half
        close(
            value.detach().view(1),
            expected,
            2e-2 if half else 1e-5 * max(1.0, expected.item()),
            record,
            kind,
            relative=half,
        )
        wanted = data[f"{where}{gradient}"].float()
        close(found, wanted, 4e-2 if half else 1e-5, record, f"{kind} gradients", relative=half)


@pytest.mark.parametrize("key", cases("rglf"))
def test_our_guards_change_only_what_they_are_for(key):
    """Samples without answers are left out; samples whose losses are all equal get no label; nothing else differs."""
    data = case("rglf", key)
    scores, losses = data["router_logits"].float(), data["lmm_losses"].float()
    ours = rglf_loss(scores, losses)
    usable = losses.isfinite().all(-1)
    informative = losses.amax(-1) > losses.amin(-1)
    if usable.all() and informative.all():
        torch.testing.assert_close(ours, rglf_loss(scores, losses, guard=False), rtol=0, atol=0)
        return
    assert ours.isfinite()
    kept = usable & informative
    expected = ranking_loss(scores[usable], losses[usable])
    if kept.any():
        expected = expected + 0.1 * feedback_cross_entropy(scores[kept], losses[kept], guard=False)
    torch.testing.assert_close(ours, expected)
