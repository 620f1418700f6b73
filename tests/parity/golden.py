"""Access to the published implementation's numbers, and a ledger of how close ours come."""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from tokenflex.contracts import Grid, Instruction, VisualTokens
from tokenflex.conversion import layout
from tokenflex.ops.pooling import PYRAMID
from tokenflex.routers.avg import AVGRouter
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.voters.position_weighted import PositionWeightedVoter

DATA = Path(__file__).parent / "data"


@cache
def cases(name):
    """Settings of every case of a file."""
    return json.loads((DATA / f"{name}.json").read_text())["cases"]


@cache
def extra(name, key):
    """Settings of a file besides its cases."""
    return json.loads((DATA / f"{name}.json").read_text())[key]


@cache
def tensors(name):
    """Every tensor of a file, by ``CASE/TENSOR``."""
    return load_file(DATA / f"{name}.safetensors")


def case(name, key):
    """The tensors of one case."""
    return {k.removeprefix(f"{key}/"): t for k, t in tensors(name).items() if k.startswith(f"{key}/")}


def close(found, expected, limit, record, name, *, relative=False):
    """Assert that the largest deviation is within ``limit`` (of the largest entry, if relative), and record it."""
    assert found.shape == expected.shape
    off = (found.detach().double() - expected.double()).abs().max().item() if found.numel() else 0.0
    if relative:
        off /= max(expected.double().abs().max().item(), 1e-12)
    record(name, off)
    assert off <= limit, f"{name}: {off:.3g} > {limit:.3g}"


class Published:
    """Our scaler, router and voter with one of the published sets of weights."""

    def __init__(self, router, dtype=torch.float32, **settings):
        info = cases("router_weights")[router]
        self.dim, self.k = info["hidden_size"], len(info["vis_token_granularity"])
        side = round(info["vis_token_granularity"][-1] ** 0.5)
        self.grid = Grid(side, side)
        self.scaler = AveragePoolScaler(AveragePoolScaler.Config(windows=PYRAMID))
        config = AVGRouter.Config(
            **{"text_tokens": info["filtered_text_num"], "dropout": 0.0, "spill": True, **settings}
        )
        self.router = AVGRouter(config, dim=self.dim, num_levels=self.k)
        segments = self.router.segments(self.scaler.layouts(self.grid))
        self.voter = PositionWeightedVoter(PositionWeightedVoter.Config(), segments=segments, num_levels=self.k)
        self.names = {}
        for key, tensor in case("router_weights", router).items():
            (part, name), _ = layout.stock_name(f"model.router.{key}")[0].split(".", 1), None
            parameter = getattr(self, part).get_parameter(name)
            parameter.data.copy_(tensor.flatten() if name == "weight" and part == "voter" else tensor)
            self.names[key] = parameter
        assert len(self.names) == 19
        self.router.to(dtype).eval()
        self.voter.to(dtype).eval()

    def levels(self, hidden):
        """Every level's tokens of one image ``(tiles, tokens, dim)``."""
        tokens = VisualTokens(hidden, self.grid)
        return [self.scaler.scale(tokens, level) for level in range(self.k)]

    def ballots(self, hidden, text, mask=None):
        mask = torch.ones(len(text), dtype=torch.bool) if mask is None else mask.bool()
        return self.router(self.levels(hidden), Instruction(text, mask))

    def scores(self, hidden, text, mask=None):
        """The router's logits, ``(levels,)``."""
        return self.voter(self.ballots(hidden, text, mask))
