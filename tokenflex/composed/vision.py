"""Vision encoders up to their patch tokens: one class per library, each loading weights its library's own way."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenflex.errors import ConfigError

Fit = Literal["crop", "squash", "pad"]
Size = tuple[int, int]
Layer = int | Sequence[int]


BATCH_NORM = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Preprocessing:
    """What the encoder's images look like.

    Attributes:
        image_size: (height, width) in pixels.
        mean, std: per channel, of pixels in 0..1.
        resample: a filter of Pillow.
        fit: ``crop`` cuts the longer sides off, ``squash`` changes the aspect ratio, ``pad`` adds bars.
    """

    image_size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int
    fit: Fit


@dataclass(frozen=True)
class TowerRequest:
    """An encoder a user asked for.

    Attributes:
        name: as its library knows it.
        layer: whose output is taken; -1 is the last one, with the final normalisation. Of several, see `joined`.
        image_size: (height, width), or None for the encoder's own.
        options: further arguments of the library's creating function, JSON-ready.
        pretrained: load weights; False gives random ones.
        weights: a file to load them from, or the tensors by name.
    """

    name: str
    layer: Layer = -1
    image_size: Size | None = None
    options: Mapping[str, Any] | None = None
    pretrained: bool = True
    weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = None


class VisionTower(nn.Module, ABC):
    """An encoder without its pooling and head: images in, a grid of patch features out."""

    source: ClassVar[str]

    def __init__(self, trunk: nn.Module, layer: Layer) -> None:
        super().__init__()
        self.trunk: Any = trunk
        self.layers = (layer,) if isinstance(layer, int) else tuple(layer)
        self.train(trunk.training)

    def train(self, mode: bool = True) -> "VisionTower":
        """As of every module, except that batch normalisation keeps the statistics it was pretrained with.

        Few images of another kind would spoil them, even while nothing of the encoder is trained.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, BATCH_NORM):
                module.eval()
        return self

    @classmethod
    @abstractmethod
    def create(cls, request: TowerRequest) -> tuple["VisionTower", dict[str, Any], Preprocessing]:
        """The encoder as its library makes it, the data to build it again, and what its images look like.

        Raises:
            ConfigError: the library is missing, or doesn't know what was asked for.
        """

    @classmethod
    @abstractmethod
    def rebuild(cls, spec: Mapping[str, Any]) -> "VisionTower":
        """The same encoder from that data, weights still to come; needs no network."""

    @abstractmethod
    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images channels rows cols"]:
        """Patch features; class and register tokens are left out."""


def joined(maps: Sequence[Float[Tensor, "images _ _ _"]], first: int) -> Float[Tensor, "images channels rows cols"]:
    """Features of several layers on one grid, channels behind each other.

    Of a finer map the patches of one cell become its channels; a coarser one is repeated.

    Args:
        maps: the layers' features.
        first: index of the map whose grid is taken.

    Raises:
        ConfigError: a side isn't a multiple of the other.
    """
    rows, cols = maps[first].shape[-2:]
    found = []
    for one in maps:
        high, wide = one.shape[-2:]
        if high % rows == 0 and wide % cols == 0 and high * cols == wide * rows:
            found.append(nn.functional.pixel_unshuffle(one, high // rows))
        elif rows % high == 0 and cols % wide == 0:
            found.append(one.repeat_interleave(rows // high, 2).repeat_interleave(cols // wide, 3))
        else:
            raise ConfigError(
                f"layers with grids of {rows} x {cols} and {high} x {wide} can't be joined: sides must be multiples of "
                "each other. Name other layers, or another image_size."
            )
    return torch.cat(found, dim=1)


def required(package: str) -> Any:
    """An optional library, imported.

    Raises:
        ConfigError: it isn't installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"vision encoders from {package} need that library, which can't be imported ({error}). "
            'Install it: pip install "tokenflex[custom]".'
        ) from error


def keep_buffers(trunk: nn.Module) -> nn.Module:
    """Save computed tables (rotary angles, relative positions) along, so that a loaded model has them too."""
    saved = set(trunk.state_dict())
    for path, buffer in list(trunk.named_buffers()):
        if path not in saved:
            owner, _, name = path.rpartition(".")
            trunk.get_submodule(owner).register_buffer(name, buffer, persistent=True)
    return trunk


def rebuild_tower(spec: Mapping[str, Any]) -> VisionTower:
    """The tower a config describes.

    Raises:
        ConfigError: no source of that name.
    """
    named = spec.get("source") if isinstance(spec, Mapping) else None
    return source(str(named)).rebuild(spec)


def source(name: str) -> type[VisionTower]:
    """The class that serves a library.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in SOURCES:
        raise ConfigError(f"vision source {name!r} isn't known; use one of {', '.join(SOURCES)}.")
    return getattr(import_module(f"tokenflex.composed.{SOURCES[name][0]}"), SOURCES[name][1])


SOURCES = {
    "timm": ("timm_tower", "TimmTower"),
    "open_clip": ("open_clip_tower", "OpenClipTower"),
    "transformers": ("transformers_tower", "TransformersTower"),
}
