"""The RGLF losses against worked values and a literal transcription of the formula."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.ops.ranking import best_first, feedback_cross_entropy, forgive, ranking_loss, rglf_loss

NUMBERS = st.floats(-3, 3, width=32)


def literal_ranking_loss(scores, losses, margin=1.0):
    """Loop by loop: for each rank distance j the mean over samples and pairs, summed over j."""
    levels = scores.shape[1]
    total = 0.0
    for j in range(1, levels):
        terms = []
        for row, feedback in zip(scores.tolist(), losses.tolist(), strict=True):
            order = sorted(range(levels), key=lambda g: (feedback[g], g))
            top = max(row)
            log_z = top + math.log(sum(math.exp(value - top) for value in row))
            for i in range(levels - j):
                better, worse = order[i], order[i + j]
                gap = (row[worse] - log_z) - (row[better] - log_z)
                terms.append(max(0.0, gap + margin * j * (feedback[worse] - feedback[better])))
        total += sum(terms) / len(terms)
    return total


def test_worked_value():
    scores = torch.zeros(1, 3)
    losses = torch.tensor([[0.5, 0.2, 1.0]])
    assert ranking_loss(scores, losses).item() == pytest.approx((0.3 + 0.5) / 2 + 2 * 0.8)
    assert float(feedback_cross_entropy(scores, losses)) == pytest.approx(math.log(3))
    assert float(rglf_loss(scores, losses)) == pytest.approx(2.0 + 0.1 * math.log(3))


@given(st.integers(1, 4), st.integers(2, 5), st.data())
def test_equals_the_literal_formula(samples, levels, data):
    table = st.lists(st.lists(NUMBERS, min_size=levels, max_size=levels), min_size=samples, max_size=samples)
    scores, losses = torch.tensor(data.draw(table)), torch.tensor(data.draw(table)).abs()
    expected = literal_ranking_loss(scores, losses)
    assert ranking_loss(scores, losses).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(st.permutations(range(5)))
def test_naming_of_levels_is_nothing(order):
    generator = torch.Generator().manual_seed(0)
    scores, losses = torch.randn(3, 5, generator=generator), torch.rand(3, 5, generator=generator)
    torch.testing.assert_close(rglf_loss(scores[:, order], losses[:, order]), rglf_loss(scores, losses))


def test_a_router_that_follows_the_feedback_widely_enough_costs_nothing():
    losses = torch.tensor([[0.0, 0.1, 0.2]])
    assert float(ranking_loss(torch.tensor([[0.0, -5.0, -10.0]]), losses)) == 0.0
    assert float(ranking_loss(torch.tensor([[-10.0, -5.0, 0.0]]), losses)) > 10.0


def test_ties_go_to_the_coarser_level():
    assert best_first(torch.tensor([[0.3, 0.1, 0.1]])).tolist() == [[1, 2, 0]]


def test_equal_losses_give_no_label_but_still_a_ranking():
    scores = torch.tensor([[0.0, 1.0]], requires_grad=True)
    losses = torch.tensor([[0.5, 0.5]])
    assert feedback_cross_entropy(scores, losses).item() == 0.0
    assert ranking_loss(scores, losses).item() == pytest.approx(1.0)


def test_gradient_at_the_hinge_is_one_half():
    scores = torch.zeros(1, 2, requires_grad=True)
    ranking_loss(scores, torch.zeros(1, 2)).backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[-0.5, 0.5]]))


def test_samples_without_feedback_are_left_out():
    scores, losses = torch.randn(3, 4), torch.rand(3, 4)
    losses[1] = float("nan")
    kept = rglf_loss(scores[[0, 2]], losses[[0, 2]])
    torch.testing.assert_close(rglf_loss(scores, losses), kept)


def test_a_batch_without_feedback_is_a_zero_of_the_graph():
    scores = torch.randn(2, 3, requires_grad=True)
    loss = rglf_loss(scores, torch.full((2, 3), float("nan")))
    assert float(loss) == 0.0
    loss.backward()
    assert torch.equal(scores.grad, torch.zeros(2, 3))


def test_tolerance_forgives_small_differences():
    losses = torch.tensor([[0.25, 0.2, 0.9]])
    torch.testing.assert_close(forgive(losses, 0.1), torch.tensor([[0.2, 0.2, 0.9]]))
    torch.testing.assert_close(forgive(losses, 0.0), losses)
    scores = torch.zeros(1, 3, requires_grad=True)
    rglf_loss(scores, losses, rank_weight=0.0, ce_weight=1.0, tolerance=0.1).backward()
    assert int(scores.grad.argmin()) == 0


@given(st.integers(2, 5))
def test_half_precision_inputs_are_computed_in_float32(levels):
    generator = torch.Generator().manual_seed(levels)
    scores, losses = torch.randn(2, levels, generator=generator), torch.rand(2, levels, generator=generator)
    result = rglf_loss(scores.bfloat16(), losses.bfloat16())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, rglf_loss(scores.bfloat16().float(), losses.bfloat16().float()))
