"""Positions with axes (M-RoPE) for shortened images.

``span``     a kept token sits at the mean of its source tokens' coordinates, and the text tokens around keep theirs:
             the image stays as large as it was, seen by fewer tokens. Levels differ in nothing but the tokens, and
             answers in pixel coordinates keep their meaning.
``compact``  exactly what the host computes for an image of the kept grid: a smaller image, shorter positions, as
             in training at dynamic resolution.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import Grid, ScaledTokens, Span
from tokenflex.errors import ConfigError
from tokenflex.hosts.layouts import GridLayout, ImageLayout
from tokenflex.hosts.placeholders import Shortening, gathered, places
from tokenflex.ops.assignment import mean_of_sources

Positions = Literal["span", "compact"]
RENAMED = {"second_per_grids": "video_second_per_grid"}
"""Arguments of ``get_rope_index`` whose input has another name."""
FRAME_SECONDS = ("video_second_per_grid", "second_per_grid_ts")
"""Inputs with the seconds between a video's frames, which positions in time are computed from."""


def full_positions(model: Any, inputs: Mapping[str, Any]) -> Int[Tensor, "axes rows length"] | Tensor:
    """The host's own positions for the batch as it is; the caller's, if there are any."""
    if inputs.get("position_ids") is not None:
        return inputs["position_ids"]
    compute = model.base_model.get_rope_index
    names = inspect.signature(compute).parameters
    arguments = {name: inputs.get(RENAMED.get(name, name)) for name in names}
    mask = inputs.get("attention_mask")
    arguments["attention_mask"] = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    return compute(**{name: value for name, value in arguments.items() if value is not None})[0]


def span_positions(
    full: Tensor,
    plan: Shortening,
    spans: Sequence[Span],
    layouts: Sequence[ImageLayout],
    scaled: Sequence[ScaledTokens],
    kept: Sequence[int],
) -> Float[Tensor, "axes new_rows new_length"]:
    """Text tokens keep their positions, kept tokens get the mean of their sources'.

    Images of equal geometry are placed together, and nothing is read back from the device.

    Args:
        full: ``(axes, rows, length)``, of the whole batch.
        plan: of these images' rows.
        kept: placeholders of every image.
    """
    out = gathered(plan, full, 0).float()
    where = places(plan, spans, kept)
    for members in _alike(layouts, scaled):
        first, own = members[0], [spans[i] for i in members]
        old = np.stack([span.at.numpy() for span in own])
        rows = np.array([[span.row] for span in own])
        new_rows, new = (np.stack([where[i][axis] for i in members]) for axis in (0, 1))
        rows, old, new_rows, new = (torch.from_numpy(each).to(full.device) for each in (rows, old, new_rows, new))
        at = full[:, rows, old].movedim(0, -1).float()
        assignment = torch.stack([scaled[i].assignment for i in members]).to(full.device)
        out[:, new_rows, new] = _pooled(at, layouts[first], scaled[first], assignment).movedim(-1, 0)
    return out


def _alike(layouts: Sequence[ImageLayout], scaled: Sequence[ScaledTokens]) -> list[list[int]]:
    """Numbers of images of equal geometry, before and after scaling."""
    groups: dict[Any, list[int]] = {}
    for i, (layout, item) in enumerate(zip(layouts, scaled, strict=True)):
        frames = None if item.frames is None else tuple(item.frames.tolist())
        groups.setdefault((layout, item.grid, item.features.shape[-2], frames), []).append(i)
    return list(groups.values())


def _pooled(
    at: Float[Tensor, "images placeholders axes"],
    layout: ImageLayout,
    scaled: ScaledTokens,
    assignment: Int[Tensor, "images views tokens"],
) -> Float[Tensor, "images packed axes"]:
    """Positions of shortened images of one geometry.

    Args:
        at: of the full ones.
        scaled: one of them.
        assignment: of all of them.
    """
    kept = scaled.features.shape[-2]
    tokens, separators = layout.unpack(at)
    pooled = mean_of_sources(tokens, assignment, kept, scaled.frames, scaled.averages).flatten(1, 2)
    if separators is None:
        return pooled
    its = scaled.grid if scaled.grid is not None else kept
    order = torch.from_numpy(layout.order(its, scaled.features.shape[-3])).to(at.device)
    packed = torch.cat([pooled, separators], dim=1).index_select(1, order)
    if isinstance(layout, GridLayout) and layout.newline:
        _place_newlines(packed, at, layout, scaled, assignment)
    return packed


def _place_newlines(packed: Tensor, full: Tensor, layout: GridLayout, scaled: ScaledTokens, assignment: Tensor) -> None:
    """A kept row's newline sits at the mean of the newlines of the rows that went into it."""
    rows, cols = layout.grid.rows, layout.grid.cols
    end = full.shape[1] - layout.end
    newlines = full[:, layout.begin : end].unflatten(1, (layout.views, rows, cols + 1))[..., -1, :]
    grid = scaled.grid if scaled.grid is not None else Grid(1, scaled.features.shape[-2])
    heads = assignment.unflatten(-1, (rows, cols))[..., 0]
    into = torch.where(heads >= 0, heads.div(grid.cols, rounding_mode="floor"), heads)
    pooled = mean_of_sources(newlines, into, grid.rows, scaled.frames).flatten(1, 2)
    lines = packed[:, layout.begin : packed.shape[1] - layout.end].unflatten(1, (-1, grid.cols + 1))
    lines[:, :, -1] = pooled


def compact_grids(
    grids: Int[Tensor, "images sizes"], layouts: Sequence[ImageLayout], scaled: Sequence[ScaledTokens]
) -> Tensor:
    """(time, height, width), or (height, width), in patches of images that have the kept grids.

    Raises:
        ConfigError: kept tokens that form no grid.
    """
    rows: list[list[int]] = []
    for (*time, height, width), layout, item in zip(grids.tolist(), layouts, scaled, strict=True):
        if item.grid is None:
            raise ConfigError(
                "positions='compact' needs kept tokens that form a grid, and this scaler's don't; use positions='span'."
            )
        merged = [int(item.frames[-1]) + 1] if item.frames is not None else time
        rows.append([*merged, height // layout.grid.rows * item.grid.rows, width // layout.grid.cols * item.grid.cols])
    return torch.tensor(rows, dtype=grids.dtype, device=grids.device)
