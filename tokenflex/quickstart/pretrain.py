"""Stage 0: stands in for the pre-training a CLIP tower brings along and a tower from config lacks.

A linear head on every patch names its digit and ink, one on every view names photograph and wash. Only training
pictures are used, and the heads are thrown away.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from tokenflex.quickstart.hosts import SmallHost
from tokenflex.quickstart.pictures import COLS, INKS, PHOTOS, WASHES, Picture

DIGITS, BATCH = 10, 64
EMPTY_WEIGHT = 0.1


class DenseHeads(nn.Module):
    """What each patch of the local tiles and each view as a whole shows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.digit, self.ink = nn.Linear(width, DIGITS + 1), nn.Linear(width, len(INKS) + 1)
        self.photo, self.wash = nn.Linear(width, len(PHOTOS)), nn.Linear(width, len(WASHES))

    def loss(
        self,
        features: Float[Tensor, "pictures views patches width"],
        cells: Int[Tensor, "pictures tiles patches two"],
        whole: Int[Tensor, "pictures two"],
    ) -> Float[Tensor, ""]:
        """The sum of the four cross-entropies; empty cells weigh a tenth.

        Args:
            features: the tiles are the last views.
        """
        local, views = features[:, -cells.shape[1] :], features.mean(2)
        total = features.new_zeros(())
        for head, targets in ((self.digit, cells[..., 0]), (self.ink, cells[..., 1])):
            weight = torch.ones(head.out_features, device=features.device)
            weight[-1] = EMPTY_WEIGHT
            total = total + F.cross_entropy(head(local).flatten(0, -2), targets.flatten(), weight=weight)
        for head, targets in ((self.photo, whole[:, 0]), (self.wash, whole[:, 1])):
            total = total + F.cross_entropy(head(views).flatten(0, 1), targets.repeat_interleave(views.shape[1]))
        return total


def pretrain(
    small: SmallHost,
    stock: Sequence[Picture],
    *,
    steps: int,
    rate: float,
    seed: int,
    tick: Callable[[], None],
) -> None:
    """Train the vision tower in place.

    Args:
        steps: optimizer steps of 64 pictures.
        rate: peak learning rate.
        tick: called after every step.
    """
    rng = np.random.default_rng((seed, steps))
    tower, images = small.tower, small.processor.image_processor
    device = next(tower.parameters()).device
    heads = DenseHeads(small.width).to(device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    tower.train()
    for _ in range(steps):
        chosen = [stock[i] for i in rng.integers(0, len(stock), BATCH)]
        pixels = images([p.image for p in chosen], return_tensors="pt").pixel_values.to(device)
        loss = heads.loss(small.look(pixels), _cells(chosen, small.tiles).to(device), _whole(chosen).to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        tick()


def _cells(chosen: Sequence[Picture], tiles: int) -> Int[Tensor, "pictures tiles patches two"]:
    """Targets of each tile's patches, row-major; tiles lie side by side."""
    cells = torch.from_numpy(np.stack([picture.cells for picture in chosen]))
    return cells.unflatten(2, (tiles, COLS // tiles)).transpose(1, 2).flatten(2, 3)


def _whole(chosen: Sequence[Picture]) -> Int[Tensor, "pictures two"]:
    return torch.tensor([(picture.photo, picture.wash) for picture in chosen])
