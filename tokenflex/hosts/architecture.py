"""What differs between architectures whose images are grids of tokens, as data for one adapter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import Grid

Inputs = Mapping[str, Any]
Runs = Literal["whole", "views", "rows"]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """How one routing unit (an image, a tile, a video) lies in the prompt and in the encoder's output.

    The order is: ``begin`` marks; the views' tokens, row-major, with one more mark behind each row if ``newline``;
    ``end`` marks. Marks are placeholders like the tokens, but keep their number (newlines: one per kept row).

    Attributes:
        views: crops, or frames of a video.
        grid: tokens of one view.
        video: the views are frames, which may be merged; otherwise they are crops.
        runs: the runs that the placeholders form in the text: ``whole``, one (whatever lies between); ``views``, one
            per view, with text tokens before each that go when the view goes; ``rows``, one per row of tokens, with a
            word behind each that goes when the row goes.
    """

    grid: Grid
    views: int = 1
    runs: Runs = "whole"
    begin: int = 0
    end: int = 0
    newline: bool = False
    video: bool = False

    @property
    def placeholders(self) -> int:
        """Placeholders in the full prompt."""
        return self.placeholders_of(self.grid)

    def placeholders_of(self, layout: Grid | int) -> int:
        """Placeholders in all once each view keeps ``layout``."""
        grid = layout if isinstance(layout, Grid) else Grid(1, layout)
        if self.runs == "rows":
            return grid.cols * max(min(grid.rows, self.grid.rows), 1)
        tokens = self.views * grid.rows * (grid.cols + self.newline)
        return tokens if self.runs == "views" else self.begin + tokens + self.end

    def kept(self, layout: Grid | int, frames: Sequence[int] | None = None) -> tuple[int, ...]:
        """Placeholders per run once each view keeps ``layout``.

        Args:
            frames: kept view of every view, where frames are merged.
        """
        grid = layout if isinstance(layout, Grid) else Grid(1, layout)
        if self.runs == "rows":
            rows = max(min(grid.rows, self.grid.rows), 1)
            return (*(grid.cols,) * (rows - 1), *(0,) * (self.grid.rows - rows), grid.cols)
        size = grid.rows * (grid.cols + self.newline)
        into = list(range(self.views)) if frames is None else list(frames)
        if self.runs == "views":
            return tuple(size * (i == 0 or into[i] != into[i - 1]) for i in range(self.views))
        return (self.begin + len(set(into)) * size + self.end,)

    def tiles(self) -> tuple["Unit", ...]:
        """The views as units of their own; the unit itself where they are frames, or text or separators lie between."""
        apart = self.runs == "whole" and not (self.video or self.separators)
        return (replace(self, views=1),) * self.views if apart else (self,)

    @property
    def separators(self) -> int:
        """Different marks of the encoder's output: begin, one newline, end."""
        return self.begin + self.newline + self.end

    def unpack(
        self, packed: Float[Tensor, "*batch placeholders dim"]
    ) -> tuple[Float[Tensor, "*batch views tokens dim"], Float[Tensor, "*batch marks dim"] | None]:
        """(tokens, marks) of the encoder's output for the unit; newlines are all the same."""
        if not self.separators:
            return packed.unflatten(-2, (self.views, self.grid.tokens)), None
        begin, lines, end = packed.tensor_split([self.begin, packed.shape[-2] - self.end], dim=-2)
        table = lines.unflatten(-2, (self.views, self.grid.rows, self.grid.cols + self.newline))
        tokens = table[..., : self.grid.cols, :].flatten(-3, -2)
        return tokens, torch.cat([begin, *([table[..., 0, :1, -1, :]] if self.newline else []), end], dim=-2)

    def order(self, layout: Grid | int, views: int) -> Int[np.ndarray, " packed"]:
        """The shortened unit as indices into its flattened kept tokens followed by its marks.

        Args:
            views: how many are kept.
        """
        grid = layout if isinstance(layout, Grid) else Grid(1, layout)
        tokens = views * grid.tokens
        table = np.arange(tokens).reshape(-1, grid.cols)
        first = tokens + self.begin
        if self.newline:
            table = np.pad(table, ((0, 0), (0, 1)), constant_values=first)
        begin = np.arange(tokens, first)
        end = np.arange(first + self.newline, first + self.newline + self.end)
        return np.concatenate([begin, table.ravel(), end])


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One kind of visual input.

    Attributes:
        key: its name in ``mm_encoder_outputs``.
        encoder: the method of the host's base model that encodes it.
        token: attribute of the config that holds the placeholder's id.
        type: its number among the token types, for hosts whose images and videos share a placeholder.
        pixels: the input whose presence means that there is something to encode.
        inputs: further inputs of the encoder; dropped once it has run.
        sizes: those of them that ``units`` reads numbers from.
        grids: input of (time, height, width) in patches, for hosts that compute positions from it.
        units: from config, inputs and which tokens are placeholders, the batch's units in order; ``sizes``, ``grids``
            and the placeholders are given on the CPU.
    """

    units: Callable[[Any, Inputs, Int[Tensor, "rows length"]], Sequence[Unit]]
    key: str = "image"
    encoder: str = "get_image_features"
    token: str = "image_token_id"
    type: int | None = None
    pixels: str = "pixel_values"
    inputs: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    grids: str | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One ``model_type``.

    Attributes:
        family: the table it stands in.
        modalities: what it sees.
        canonical: the grid parts are sized for, from the config.
        vision_tower, projector: paths of the modules and parameters.
        flat: whether ``pooler_output`` must be one tensor; otherwise a list with one entry per row of the batch.
        rotary: whether positions have axes (M-RoPE), so that shortened images need positions of their own.
        types: input that tells text tokens, images and videos apart as 0, 1, 2; made from the ids where it is missing.
        mark_field: field of the encoder's output that goes along as it is.
        refusal: from the config, why a checkpoint isn't served, or None.
    """

    family: str
    modalities: tuple[Modality, ...]
    canonical: Callable[[Any], Grid]
    vision_tower: tuple[str, ...]
    projector: tuple[str, ...]
    flat: bool = False
    rotary: bool = False
    types: str | None = None
    mark_field: str | None = None
    refusal: Callable[[Any], str | None] = lambda config: None
