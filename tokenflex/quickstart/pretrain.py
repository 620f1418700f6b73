"""Stage 0: stands in for the pre-training a CLIP tower brings along and a tower from config lacks.

A linear head on every patch names its digit and ink, one on every view names photograph and wash. A tower that is to
take images of several sizes is shown them: in every second step, on average, the images are smaller, and only
photograph, wash and the number of digits are asked of them.
Only training images are used, and the heads are thrown away.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from tokenflex.quickstart.hosts import SmallHost
from tokenflex.quickstart.images import COLS, COUNTS, INKS, PHOTOS, WASHES, Scene

DIGITS, BATCH = 10, 64
EMPTY_WEIGHT = 0.1


class DenseHeads(nn.Module):
    """What each patch of the local tiles and each view as a whole shows.

    Args:
        width: of the features.
        counts: whether views say too how many digits there are.
    """

    def __init__(self, width: int, counts: bool = False) -> None:
        super().__init__()
        self.digit, self.ink = nn.Linear(width, DIGITS + 1), nn.Linear(width, len(INKS) + 1)
        self.whole = nn.ModuleList([nn.Linear(width, len(PHOTOS)), nn.Linear(width, len(WASHES))])
        if counts:
            self.whole.append(nn.Linear(width, len(COUNTS)))

    def loss(
        self,
        features: Float[Tensor, "images views patches width"],
        cells: Int[Tensor, "images tiles patches two"] | None,
        whole: Int[Tensor, "images three"],
    ) -> Float[Tensor, ""]:
        """The sum of the heads' cross-entropies; empty cells weigh a tenth.

        Args:
            features: the tiles are the last views.
            cells: None where patches are no cells.
            whole: photograph, wash, number of digits.
        """
        views, total = features.mean(2), features.new_zeros(())
        if cells is not None:
            local = features[:, -cells.shape[1] :]
            for head, targets in ((self.digit, cells[..., 0]), (self.ink, cells[..., 1])):
                weight = torch.ones(head.out_features, device=features.device)
                weight[-1] = EMPTY_WEIGHT
                total = total + F.cross_entropy(head(local).flatten(0, -2), targets.flatten(), weight=weight)
        for head, targets in zip(self.whole, whole.T, strict=False):
            total = total + F.cross_entropy(head(views).flatten(0, 1), targets.repeat_interleave(views.shape[1]))
        return total


def pretrain(
    small: SmallHost,
    stock: Sequence[Scene],
    *,
    steps: int,
    rate: float,
    seed: int,
    tick: Callable[[], None],
) -> None:
    """Train the vision tower in place.

    Args:
        steps: optimizer steps of 64 images.
        rate: peak learning rate.
        tick: called after every step.
    """
    rng = np.random.default_rng((seed, steps))
    tower, images = small.tower, small.processor.image_processor
    device = next(tower.parameters()).device
    heads = DenseHeads(small.width, counts=len(small.shares) > 1).to(device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    tower.train()
    for _ in range(steps):
        chosen = [stock[i] for i in rng.integers(0, len(stock), BATCH)]
        share = rng.choice(small.shares, p=_odds(small.shares)) if len(small.shares) > 1 else 1.0
        seen = images([_smaller(image, share) for image in chosen], return_tensors="pt").to(device)
        cells = _cells(chosen, small.tiles).to(device) if share == 1 else None
        loss = heads.loss(small.look(seen), cells, _whole(chosen).to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        tick()


def _cells(chosen: Sequence[Scene], tiles: int) -> Int[Tensor, "images tiles patches two"]:
    """Targets of each tile's patches, row-major; tiles lie side by side."""
    cells = torch.from_numpy(np.stack([image.cells for image in chosen]))
    return cells.unflatten(2, (tiles, COLS // tiles)).transpose(1, 2).flatten(2, 3)


def _odds(shares: Sequence[float]) -> list[float]:
    """Half for the last, which is the whole image."""
    return [0.5 / (len(shares) - 1)] * (len(shares) - 1) + [0.5]


def _smaller(image: Scene, share: float) -> Image.Image:
    if share == 1:
        return image.image
    width, height = (round(side * share**0.5) for side in image.image.size)
    return image.image.resize((width, height), Image.Resampling.BICUBIC)


def _whole(chosen: Sequence[Scene]) -> Int[Tensor, "images three"]:
    digits = [min(int((image.cells[..., 0] < DIGITS).sum()), len(COUNTS) - 1) for image in chosen]
    return torch.tensor([(p.photo, p.wash, count) for p, count in zip(chosen, digits, strict=True)])
