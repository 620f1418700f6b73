"""A post-norm ``nn.TransformerEncoderLayer`` in pieces, with the layer's own weights and dropouts.

The whole is ``finish(layer, rows, attend(layer, project(layer, rows), axis))``. In pieces, rows that are averages of
others needn't be projected, for averaging commutes with affine maps; and a row that attends to itself alone needs
neither query nor key, for a softmax over one key is 1.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Affine = Callable[[Tensor], Tensor]
"""A map of rows ``(*batch, rows, dim)`` that commutes with averaging them."""


class EncoderLayer(nn.TransformerEncoderLayer):
    """The layer, called with rows and with how they attend.

    A call of the module, not of functions on its weights: where parameters are sharded, that is what gathers them.
    """

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        attending: Callable[[nn.TransformerEncoderLayer], Tensor] | None = None,
    ) -> Tensor:
        """As ``nn.TransformerEncoderLayer``, or with what ``attending`` gives in place of its attention.

        Args:
            src: rows, ``(*batch, rows, dim)``.
            attending: of the layer, what attention adds to each row.
        """
        if attending is None:
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        return finish(self, src, attending(self))


def project(
    layer: nn.TransformerEncoderLayer, rows: Float[Tensor, "*batch rows dim"]
) -> Float[Tensor, "*batch rows 3*dim"]:
    """Queries, keys and values side by side."""
    return F.linear(rows, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias)


def attend(
    layer: nn.TransformerEncoderLayer, projected: Float[Tensor, "*batch views rows qkv"], axis: int
) -> Float[Tensor, "*batch views rows dim"]:
    """Attention between the entries of one axis, through the output projection.

    Args:
        projected: what `project` gives.
        axis: -2: the rows of a view attend to one another; -3: the views of a row do.
    """
    attention = layer.self_attn
    apart = projected.movedim(axis, -2)
    heads = apart.flatten(0, -3).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(*heads, dropout_p=_weight_dropout(layer))
    mixed = mixed.transpose(1, 2).reshape(*apart.shape[:-1], -1)
    return attention.out_proj(mixed.movedim(-2, axis))


def attend_alone(
    layer: nn.TransformerEncoderLayer, at_rows: Callable[[Affine], Tensor]
) -> Float[Tensor, "*batch rows dim"]:
    """`attend` where each row is the only one of its batch item.

    Args:
        at_rows: gives an affine map's value at every row, ``(*batch, rows, dim)``.
    """
    attention = layer.self_attn
    dropout = _weight_dropout(layer)
    if not dropout:
        return at_rows(lambda rows: attention.out_proj(_values(layer, rows)))
    # Every row loses weights of its own, one per head, so what follows the dropout can't be averaged.
    values = at_rows(lambda rows: _values(layer, rows)).unflatten(-1, (attention.num_heads, -1))
    weights = F.dropout(values.new_ones(*values.shape[:-1], 1), dropout)
    return attention.out_proj((weights * values).flatten(-2))


def finish(
    layer: nn.TransformerEncoderLayer,
    rows: Float[Tensor, "*batch rows dim"],
    attended: Float[Tensor, "*batch rows dim"],
) -> Float[Tensor, "*batch rows dim"]:
    """What follows attention: residual and norm, feed-forward, residual and norm."""
    rows = _normed(layer.norm1, rows + layer.dropout1(attended))
    inner = layer.dropout(layer.activation(layer.linear1(rows)))
    return _normed(layer.norm2, rows + layer.dropout2(layer.linear2(inner)))


def _values(
    layer: nn.TransformerEncoderLayer, rows: Float[Tensor, "*batch rows dim"]
) -> Float[Tensor, "*batch rows dim"]:
    first = 2 * rows.shape[-1]
    return F.linear(rows, layer.self_attn.in_proj_weight[first:], layer.self_attn.in_proj_bias[first:])


def _normed(norm: nn.LayerNorm, rows: Float[Tensor, "*batch rows dim"]) -> Float[Tensor, "*batch rows dim"]:
    """In the type of the weights: under autocast that is float32, on any device."""
    return norm(rows.to(norm.weight.dtype))


def _weight_dropout(layer: nn.TransformerEncoderLayer) -> float:
    return layer.self_attn.dropout if layer.self_attn.training else 0.0
