"""One layer's attention, computed again from the hidden states that the vision tower hands out.

Fast attention kernels never make attention weights, and asking a host for them would turn such kernels off in every
layer. Methods want one row of one layer: from what that layer was given, its own normalisation and its query and key
projections make the row again, and the tower runs as it always does.

The layer is the one whose output the projector reads. Its row is that of the class token or, in towers without one, the
mean over all rows: the attention each patch receives (as VisionZip, arXiv 2412.04467, does for such towers).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tokenflex.contracts import Grid, VisualTokens
from tokenflex.errors import InputError

QUERIES_AT_ONCE = 256
"""Rows whose weights over all patches are held at once, for towers without a class token."""


def unreadable(model: Any, paths: Sequence[str]) -> str | None:
    """Why the attention of a tower can't be computed again, as a clause; None when it can.

    Args:
        paths: of the tower's modules.
    """
    if _layers(model, paths) is None:
        return "its vision tower has no layers with a query and a key projection of their own"
    return None


def attending(
    images: Sequence[VisualTokens],
    model: Any,
    paths: Sequence[str],
    hidden: Sequence[Tensor],
    inputs: Mapping[str, Any],
) -> list[VisualTokens]:
    """The images with their tokens' attention and keys.

    Args:
        images: what the host's encoder made, in order.
        paths: of the tower's modules.
        hidden: per layer what it was given, ``(views, patches, width)``, and the last one's output.
        inputs: of the host's encoder; they may name another layer.

    Raises:
        InputError: the tower's patches lie on no square grid.
    """
    layers = _layers(model, paths)
    assert layers is not None
    which = _which(len(layers), _feature_layer(model.config, inputs))
    with torch.no_grad(), torch.autocast(hidden[which].device.type, enabled=False):
        received, keys = _received(layers[which], hidden[which].detach())
    views = [len(image.features) for image in images]
    each = zip(images, received.split(views), keys.split(views), strict=True)
    return [
        replace(image, attention=_on_grid(weights[..., None], image.grid)[..., 0], keys=_on_grid(vectors, image.grid))
        for image, weights, vectors in each
    ]


def _layers(model: Any, paths: Sequence[str]) -> nn.ModuleList | None:
    for path in paths:
        tower = reduce(getattr, path.split("."), model)
        for module in tower.modules():
            if isinstance(module, nn.ModuleList) and len(module) and _parts(module[0]) is not None:
                return module
    return None


def _parts(layer: nn.Module) -> tuple[Any, Any] | None:
    """(normalisation before attention, attention) of a transformer layer."""
    norm = getattr(layer, "layer_norm1", None) or getattr(layer, "layernorm_before", None)
    attention = getattr(layer, "self_attn", None) or getattr(layer, "attention", None)
    if norm is None or not (hasattr(attention, "q_proj") and hasattr(attention, "k_proj")):
        return None
    return norm, attention


def _feature_layer(config: Any, inputs: Mapping[str, Any]) -> int:
    layer = inputs.get("vision_feature_layer")
    layer = getattr(config, "vision_feature_layer", None) if layer is None else layer
    layer = -1 if layer is None else layer
    return layer if isinstance(layer, int) else layer[-1]


def _which(layers: int, features: int) -> int:
    """The layer that made ``hidden_states[features]``; that entry is also the input of the next one."""
    return max(features - 1 if features >= 0 else layers + features, 0)


def _received(
    layer: nn.Module, hidden: Float[Tensor, "views patches width"]
) -> tuple[Float[Tensor, "views seen"], Float[Tensor, "views seen width"]]:
    """(attention, keys) of the patches, the class token left out; attention in float32, its mean over heads."""
    parts = _parts(layer)
    assert parts is not None
    norm, attention = parts
    normed = norm(hidden)
    queries, keys = (
        getattr(attention, f"{name}_norm", nn.Identity())(getattr(attention, f"{name}_proj")(normed)) for name in "qk"
    )
    heads = getattr(attention, "num_heads", None) or attention.config.num_attention_heads
    first = 1 if math.isqrt(hidden.shape[1]) ** 2 != hidden.shape[1] else 0
    asking = queries[:, :1] if first else queries
    by_head = keys.unflatten(-1, (heads, -1)).transpose(1, 2).float()
    total = torch.zeros(hidden.shape[:2], device=hidden.device)
    for some in asking.split(QUERIES_AT_ONCE, dim=1):
        rows = some.unflatten(-1, (heads, -1)).transpose(1, 2).float()
        total += (rows @ by_head.mT / math.sqrt(rows.shape[-1])).softmax(-1).mean(1).sum(1)
    return (total / asking.shape[1])[:, first:], keys[:, first:]


def _on_grid(values: Float[Tensor, "views patches width"], grid: Grid) -> Float[Tensor, "views tokens width"]:
    """Means over the patches that went into each token.

    Raises:
        InputError: the patches lie on no square.
    """
    side = math.isqrt(values.shape[1])
    if side * side != values.shape[1] or grid.rows != grid.cols:
        raise InputError(
            f"the vision tower made {values.shape[1]} patches for {grid}; their attention can be read on squares only. "
            "Use a scaler that needs features only."
        )
    if side == grid.rows:
        return values
    planes = values.mT.unflatten(-1, (side, side)).float()
    return F.adaptive_avg_pool2d(planes, (grid.rows, grid.cols)).flatten(2).mT.to(values.dtype)
