"""The gate's labels and loss, by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.errors import ConfigError, InputError
from tokenflex_vir import RunningQuantile, gate_loss, loss_ratio, vir_targets
from tokenflex_vir.labels import FLOOR

NAN = float("nan")


def test_labels_by_hand():
    # Ratios 2, 1 and 1.5 against a threshold of 1.5.
    coarse, fine = torch.tensor([0.4, 0.2, 0.3]), torch.tensor([0.2, 0.2, 0.2])
    torch.testing.assert_close(loss_ratio(coarse, fine), torch.tensor([2.0, 1.0, 1.5]))
    assert vir_targets(torch.tensor([4.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 2.0]), 1.5).tolist() == [1.0, 0.0, 1.0]
    assert vir_targets(torch.tensor([4.0, 2.0]), torch.tensor([2.0, 2.0]), torch.tensor(2.5)).tolist() == [0.0, 0.0]


def test_rows_without_answers_have_no_label():
    labels = vir_targets(torch.tensor([NAN, 2.0]), torch.tensor([1.0, 1.0]), 1.5)
    assert labels.isnan().tolist() == [True, False]


def test_a_perfect_fine_level_ranks_by_the_coarse_loss():
    ratio = loss_ratio(torch.tensor([0.1, 0.3, 0.0]), torch.zeros(3))
    torch.testing.assert_close(ratio, torch.tensor([0.1, 0.3, 0.0]) / FLOOR)
    assert bool(ratio.isfinite().all())


def test_loss_by_hand():
    # Margins 0 and ln 3 with labels 1 and 0: -ln(1/2) and -ln(1 - 3/4), mean (0.693 + 1.386) / 2; the third has none.
    scores = torch.tensor([[1.0, 1.0], [0.0, math.log(3)], [5.0, -5.0]], requires_grad=True)
    loss = gate_loss(scores, torch.tensor([1.0, 0.0, NAN]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    loss.backward()
    assert scores.grad[2].tolist() == [0.0, 0.0]
    assert bool(scores.grad.isfinite().all())


def test_no_labels_are_a_zero_of_the_graph():
    scores = torch.randn(2, 2, requires_grad=True)
    loss = gate_loss(scores, torch.full((2,), NAN))
    assert loss.item() == 0.0
    loss.backward()
    assert bool((scores.grad == 0).all())


def test_the_gate_has_two_levels():
    with pytest.raises(InputError, match="between 2 levels, and there are 3"):
        gate_loss(torch.zeros(1, 3), torch.zeros(1))


@given(pieces=st.lists(st.lists(st.floats(0, 9, width=32), max_size=7), max_size=6), q=st.floats(0, 1))
def test_the_window_holds_the_last_values(pieces, q):
    running = RunningQuantile(q, window=5)
    for piece in pieces:
        running.update(torch.tensor(piece, dtype=torch.float32))
    last = [value for piece in pieces for value in piece][-5:]
    if last:
        torch.testing.assert_close(running.value, torch.tensor(last).quantile(q))
    else:
        assert math.isnan(running.value)


def test_what_is_not_finite_is_forgotten_at_once():
    running = RunningQuantile(0.5, window=2)
    running.update(torch.tensor([1.0, 3.0]))
    running.update(torch.tensor([NAN, float("inf")]))
    assert running.value.item() == 2.0


def test_the_window_survives_in_a_state_dict():
    one, other = RunningQuantile(0.5, window=4), RunningQuantile(0.5, window=4)
    one.update(torch.tensor([1.0, 2.0, 9.0]))
    other.load_state_dict(one.state_dict())
    one.update(torch.tensor([4.0, 5.0]))
    other.update(torch.tensor([4.0, 5.0]))
    assert one.value.item() == other.value.item() == 4.5


def test_a_label_follows_the_quantile():
    """A share of about the quantile is compressed."""
    running = RunningQuantile(0.75)
    coarse = torch.rand(400, generator=torch.Generator().manual_seed(0)) + 1
    running.update(loss_ratio(coarse, torch.ones(400)))
    labels = vir_targets(coarse, torch.ones(400), running.value)
    assert labels.mean().item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"quantile": 1.5}, "quantile=1.5 is no share"), ({"quantile": 0.5, "window": 0}, "window=0 is no number")],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        RunningQuantile(**settings)
