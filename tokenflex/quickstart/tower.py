"""What the vision tower computes for an image, at the sizes that were encoded for a decision."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tokenflex.contracts import Decision, HostInputs
from tokenflex.model import FlexModel
from tokenflex.profiling import flops


@dataclass(frozen=True)
class TowerWork:
    """FLOPs of tower and projector for one image; all images of the exam have the same size.

    Attributes:
        by_share: by how many of the image's pixels are seen; 1: all.
        shares: per level; all 1 where images aren't made smaller.
        looks: whether the router is shown an image of its own, the smallest.
    """

    by_share: Mapping[float, int]
    shares: tuple[float, ...]
    looks: bool

    def of(self, decision: Decision) -> int:
        """For one decision: every size that had to be encoded, once."""
        levels = [one.level for one in decision.tried] or [decision.level]
        seen = {self.shares[level] for level in levels}
        if self.looks and decision.scores is not None:
            seen.add(self.shares[0])
        return sum(self.by_share[share] for share in seen)


@torch.no_grad()
def tower_work(flex: FlexModel, inputs: HostInputs) -> TowerWork:
    """Count what the tower does for an image.

    Args:
        inputs: of one question about one image, as the processor made them.
    """
    batch, scaler = flex.adapter.read(inputs), flex.compressor.scaler
    if not scaler.shares:
        whole = flops.counted(lambda: flex.adapter.encode(batch)).flops
        return TowerWork({1.0: whole}, (1.0,) * scaler.num_levels, looks=False)
    found = {
        share: flops.counted(lambda share=share: flex.adapter.encode_resized(batch, [share], [0])).flops
        for share in dict.fromkeys(scaler.shares)
    }
    return TowerWork(found, scaler.shares, looks=True)
