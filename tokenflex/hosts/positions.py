"""Positions with axes (M-RoPE) for shortened pictures.

``span``     a kept token sits at the mean of its source tokens' coordinates, and the words around keep theirs: the
             picture stays as large as it was, seen by fewer tokens. Levels differ in nothing but the tokens, and
             answers in pixel coordinates keep their meaning.
``compact``  exactly what the host computes for a picture of the kept grid: a smaller picture, shorter positions, as
             in training at dynamic resolution.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import Grid, ScaledTokens
from tokenflex.errors import ConfigError
from tokenflex.hosts.architecture import Unit
from tokenflex.hosts.placeholders import Plan, Span, gathered
from tokenflex.ops.assignment import mean_of_sources

Positions = Literal["span", "compact"]
RENAMED = {"second_per_grids": "video_second_per_grid"}
"""Arguments of ``get_rope_index`` whose input has another name."""


def full_positions(model: Any, inputs: Mapping[str, Any]) -> Int[Tensor, "axes rows length"] | Tensor:
    """The host's own positions for the batch as it is; the caller's, if there are any."""
    if inputs.get("position_ids") is not None:
        return inputs["position_ids"]
    compute = model.base_model.get_rope_index
    names = inspect.signature(compute).parameters
    given = {name: inputs.get(RENAMED.get(name, name)) for name in names}
    mask = inputs.get("attention_mask")
    given["attention_mask"] = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    return compute(**{name: value for name, value in given.items() if value is not None})[0]


def span_positions(
    full: Tensor, plan: Plan, spans: Sequence[Span], units: Sequence[Unit], scaled: Sequence[ScaledTokens]
) -> Tensor:
    """``(axes, rows, new_length)``: words keep their positions, kept tokens get the mean of their sources'."""
    out = gathered(plan, full, 0).float()
    order = sorted(range(len(spans)), key=lambda i: (spans[i].row, int(spans[i].at[0])))
    for row in range(out.shape[1]):
        mine = [i for i in order if spans[i].row == row]
        if mine:
            pooled = [_pooled(full[:, row, spans[i].at.to(full.device)], units[i], scaled[i]) for i in mine]
            out[:, row, plan.visual[row].to(out.device)] = torch.cat(pooled, dim=-1)
    return out if full.is_floating_point() or bool((out != out.round()).any()) else out.to(full.dtype)


def _pooled(at: Tensor, unit: Unit, scaled: ScaledTokens) -> Tensor:
    """``(axes, packed)`` of one shortened unit.

    Args:
        at: ``(axes, placeholders)`` of the full one.
    """
    kept = scaled.features.shape[-2]
    tokens, marks = unit.unpack(at.T.float())
    pooled = mean_of_sources(tokens, scaled.assignment.to(at.device), kept, scaled.frames).flatten(0, 1)
    if marks is None:
        return pooled.T
    layout = scaled.grid if scaled.grid is not None else kept
    packed = torch.cat([pooled, marks])[unit.order(layout, scaled.features.shape[-3]).to(at.device)]
    if unit.newline:
        _place_newlines(packed, at.T.float(), unit, scaled)
    return packed.T


def _place_newlines(packed: Tensor, full: Tensor, unit: Unit, scaled: ScaledTokens) -> None:
    """A kept row's newline sits at the mean of the newlines of the rows that went into it."""
    rows, cols = unit.grid.rows, unit.grid.cols
    end = len(full) - unit.end
    newlines = full[unit.begin : end].view(unit.views, rows, cols + 1, -1)[:, :, -1]
    grid = scaled.grid if scaled.grid is not None else Grid(1, scaled.features.shape[-2])
    heads = scaled.assignment.to(full.device).view(unit.views, rows, cols)[:, :, 0]
    into = torch.where(heads >= 0, heads.div(grid.cols, rounding_mode="floor"), heads)
    pooled = mean_of_sources(newlines, into, grid.rows, scaled.frames).flatten(0, 1)
    packed[unit.begin : len(packed) - unit.end].view(-1, grid.cols + 1, full.shape[-1])[:, -1] = pooled


def compact_grids(grids: Tensor, units: Sequence[Unit], scaled: Sequence[ScaledTokens]) -> Tensor:
    """(time, height, width), or (height, width), in patches of pictures that have the kept grids.

    Raises:
        ConfigError: kept tokens that form no grid.
    """
    rows: list[list[int]] = []
    for (*time, height, width), unit, item in zip(grids.tolist(), units, scaled, strict=True):
        if item.grid is None:
            raise ConfigError(
                "positions='compact' needs kept tokens that form a grid, and this scaler's don't; use positions='span'."
            )
        merged = [int(item.frames[-1]) + 1] if item.frames is not None else time
        rows.append([*merged, height // unit.grid.rows * item.grid.rows, width // unit.grid.cols * item.grid.cols])
    return torch.tensor(rows, dtype=grids.dtype, device=grids.device)
