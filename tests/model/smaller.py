"""Tiny hosts with the scaler of smaller images, and what their vision towers are called with."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

import tokenflex
from tokenflex.contracts import ComponentConfig, Policy
from tokenflex.testing.host_bench import ROWS
from tokenflex.testing.zoo.hosts import ZOO

HOSTS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "exaone4_5")
LEVELS = (0, 4, 2)
"""Of the images of `ROWS`."""


def assembled(name="qwen2_5_vl", *, host=None, **parts):
    """A host with fresh parts that are random, but the same every time."""
    host = host or ZOO[name].build()
    torch.manual_seed(0)
    return tokenflex.wrap(host, **{"scaler": "resolution", **parts}).eval()


class Told(Policy):
    """Gives images the levels it was told, once the router has been asked."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        levels: tuple[int, ...] = LEVELS

    def forward(self, scores, tokens):
        return torch.tensor(self.config.levels)


def batch_of(flex, rows=ROWS, **more):
    tiny = ZOO[flex.adapter.model_type]
    return tiny.batch(tokenflex.hosts.stock.base_of(flex.host).config, rows, **more)


@dataclass
class Calls:
    """The patches, grids and kind of every call of a vision tower."""

    pixels: list = field(default_factory=list)
    grids: list = field(default_factory=list)

    @property
    def patches(self):
        return [len(each) for each in self.pixels]


@contextmanager
def watched(flex):
    """Hear of every call of the tower of a host of the Qwen-VL kind."""
    calls = Calls()
    model = tokenflex.hosts.stock.base_of(flex.host).base_model

    def heard(module, args, kwargs):
        given = [*args, *kwargs.values()]
        calls.pixels.append(given[0].detach().clone())
        grid = kwargs.get("grid_thw", args[1] if len(args) > 1 else None)
        calls.grids.append(None if grid is None else grid.clone())

    hook = model.visual.register_forward_pre_hook(heard, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def plain_inputs(flex, inputs, levels):
    """What the host would be given of smaller images without this library: their text, sizes and pixels.

    The text is the adapter's, held to processors in tests/hosts; pixels are those that the tower was called with.
    """
    shares = [flex.compressor.scaler.shares[level] for level in levels]
    batch = flex.adapter.resized(flex.adapter.read(inputs), shares)
    with watched(flex) as calls, torch.no_grad():
        flex.adapter.encode_resized(flex.adapter.read(inputs), shares, range(len(shares)))
    (pixels,) = calls.pixels
    return {**batch.inputs, "pixel_values": pixels}
