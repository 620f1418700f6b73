"""The pieces together are ``nn.TransformerEncoderLayer``, dropouts and all."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tokenflex.ops.encoder_layer import attend, attend_alone, finish, project

DIM, HEADS, DROPOUT = 16, 4, 0.25


def layer(dropout=DROPOUT):
    """Attention over the first of three axes."""
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(DIM, HEADS, dim_feedforward=DIM, dropout=dropout)


def whole(layer, rows, axis):
    return finish(layer, rows, attend(layer, project(layer, rows), axis))


@pytest.mark.parametrize("axis", [-2, -3])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_the_pieces_are_the_layer(axis, leading):
    one = layer().eval()
    rows = torch.randn(*leading, 3, 5, DIM)
    apart = rows.movedim(axis, -2)
    expected = one(apart.flatten(0, -3).transpose(0, 1)).transpose(0, 1).view(apart.shape).movedim(-2, axis)
    torch.testing.assert_close(whole(one, rows, axis), expected, atol=1e-6, rtol=1e-5)


def test_training_drops_what_the_layer_drops():
    """From the same random state the same attention weights, residuals and activations."""
    one, rows = layer().train(), torch.randn(3, 5, DIM)
    torch.manual_seed(1)
    expected = one(rows)
    torch.manual_seed(1)
    torch.testing.assert_close(whole(one, rows, -3), expected, atol=1e-6, rtol=1e-5)


def alone(layer, rows):
    return attend_alone(layer, lambda affine: affine(rows))


def self_attention(layer, rows):
    """The same by ``nn.MultiheadAttention``."""
    items = rows.flatten(0, -2)[None]
    return layer.self_attn(items, items, items, need_weights=False)[0].view(rows.shape)


@pytest.mark.parametrize("dropout", [0.0, DROPOUT])
def test_a_row_alone_attends_to_itself(dropout):
    one, rows = layer(dropout).eval(), torch.randn(2, 5, DIM)
    torch.testing.assert_close(alone(one, rows), self_attention(one, rows), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("attention", [alone, self_attention])
def test_a_row_alone_loses_whole_heads_while_training(attention):
    """With identities for weights what comes out is what is left of each row and head: nothing, or it scaled up."""
    one = layer().train()
    with torch.no_grad():
        one.self_attn.in_proj_weight[2 * DIM :] = torch.eye(DIM)
        one.self_attn.out_proj.weight.copy_(torch.eye(DIM))
    rows = torch.ones(10_000, 2, DIM)
    left = attention(one, rows).view(-1, HEADS, DIM // HEADS)
    assert torch.equal(left.amin(-1), left.amax(-1))
    weights = left[..., 0]
    torch.testing.assert_close(weights, torch.where(weights > 0.5, 1 / (1 - DROPOUT), 0.0))
    dropped = weights == 0
    assert dropped.float().mean().item() == pytest.approx(DROPOUT, abs=0.01)
    both = dropped[:, :1] & dropped[:, 1:]
    assert both.float().mean().item() == pytest.approx(DROPOUT**2, abs=0.01)


def test_averages_lose_heads_of_their_own_while_training():
    """All rows are averages of one and the same token, so equal rows would be ones that share their dropout."""
    one, token = layer().train(), torch.randn(1, DIM)
    found = attend_alone(one, lambda affine: affine(token).expand(1000, DIM))
    assert len(found.unique(dim=0)) == 2**HEADS


class NormInputs(TorchDispatchMode):
    """Types of what goes into layer norms."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.native_layer_norm.default:
            self.seen.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_norms_stay_in_float32_under_autocast(given):
    one, rows = layer().eval(), torch.randn(3, 5, DIM).to(given)
    with torch.no_grad(), NormInputs() as norms, torch.autocast("cpu", torch.bfloat16):
        found = whole(one, rows, -3)
    assert norms.seen == [torch.float32] * 2
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, whole(one, rows.float(), -3), atol=0.05, rtol=0)


def test_half_precision_weights_norm_in_half_precision():
    one, rows = layer().eval().bfloat16(), torch.randn(3, 5, DIM).bfloat16()
    assert whole(one, rows, -2).dtype == torch.bfloat16
