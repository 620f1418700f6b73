"""Stage 0: what a pretrained vision tower would bring along, learnt from training pictures.

Every cell's token is drawn to the language model's words for its digit and ink, and for the picture's name, photograph
and wash, as contrastive pre-training does it: towers that see the whole image carry what it is in all of their tokens.
The words stay as they are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from benchmarks.fading.pictures import NAMES, SIDE, Picture
from tokenflex.quickstart.images import INKS, PHOTOS, WASHES

BATCH, EMPTY_WEIGHT = 64, 0.2
CHOICES: dict[str, Sequence[str]] = {
    "digit": [str(digit) for digit in range(10)],
    "ink": [*INKS],
    "name": NAMES,
    "photo": [*PHOTOS],
    "wash": [*WASHES],
}
"""What a cell is named in, and the words for it; digit and ink may be none of them."""


class Words(nn.Module):
    """How near tokens are to words.

    Args:
        host, processor: whose words they are.
    """

    table: Tensor

    def __init__(self, host: Any, processor: Any) -> None:
        super().__init__()
        ids = processor.tokenizer.convert_tokens_to_ids([word for words in CHOICES.values() for word in words])
        self.register_buffer("table", host.get_input_embeddings().weight.detach()[ids].clone())
        self.sharpness, self.none = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.zeros(2))

    def tables(self) -> Sequence[Float[Tensor, "words width"]]:
        """The words by what is named."""
        return self.table.split([len(words) for words in CHOICES.values()])

    def forward(self, tokens: Float[Tensor, "pictures cells width"]) -> dict[str, Tensor]:
        """Logits by what is named, ``(pictures, cells, choices)``; the last of digit and ink is neither."""
        near = self.sharpness.exp() * tokens @ self.table.T
        found = dict(zip(CHOICES, near.split([len(words) for words in CHOICES.values()], dim=-1), strict=True))
        for none, name in zip(self.none, ("digit", "ink"), strict=True):
            found[name] = F.pad(found[name], (0, 1)) + F.pad(none[None], (found[name].shape[-1], 0))
        return found


def seen(host: Any, processor: Any, pictures: Sequence[Picture]) -> Float[Tensor, "pictures cells width"]:
    """The tower's tokens, as the language model gets them."""
    made = processor.image_processor([one.image for one in pictures], return_tensors="pt")
    tokens = host.model.visual(made["pixel_values"], made["image_grid_thw"]).pooler_output
    return tokens.unflatten(0, (len(pictures), SIDE * SIDE))


@torch.no_grad()
def all_seen(host: Any, processor: Any, pictures: Sequence[Picture]) -> Float[Tensor, "pictures cells width"]:
    """As `seen`, of many pictures, without gradients."""
    parts = [pictures[i : i + 250] for i in range(0, len(pictures), 250)]
    return torch.cat([seen(host, processor, part) for part in parts])


def targets(pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """What the heads are to name in every cell, ``(pictures, cells)`` each."""
    cells = torch.from_numpy(np.stack([one.cells for one in pictures])).flatten(1, 2)
    whole = {name: torch.tensor([getattr(one, name) for one in pictures]) for name in ("name", "photo", "wash")}
    spread = {name: each[:, None].expand(-1, cells.shape[1]) for name, each in whole.items()}
    return {"digit": cells[..., 0], "ink": cells[..., 1], **spread}


def pretrain(host: Any, processor: Any, pictures: Sequence[Picture], *, steps: int, rate: float, seed: int) -> None:
    """Train the tower, its merger included, in place.

    Args:
        steps: optimizer steps of 64 pictures.
        rate: peak learning rate.
    """
    rng, tower, words = np.random.default_rng((seed, steps)), host.model.visual, Words(host, processor)
    parameters = [*tower.parameters(), *words.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    tower.train()
    for _ in range(steps):
        chosen = [pictures[i] for i in rng.integers(0, len(pictures), BATCH)]
        near, loss = words(seen(host, processor, chosen)), torch.zeros(())
        for name, wanted in targets(chosen).items():
            weight = torch.ones(near[name].shape[-1])
            if name in ("digit", "ink"):
                weight[-1] = EMPTY_WEIGHT
            loss = loss + F.cross_entropy(near[name].flatten(0, 1), wanted.flatten(), weight=weight)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    tower.eval()


@torch.no_grad()
def align(host: Any, processor: Any, pictures: Sequence[Picture]) -> Words:
    """Turn the tower's tokens so that each is nearly the sum of its words and the placeholder, by least squares.

    Gives the words, to judge it by.
    """
    words, last = Words(host, processor), host.model.visual.merger.mlp[-1]
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    tokens = all_seen(host, processor, pictures)
    sums = host.get_input_embeddings().weight[image].expand_as(tokens).clone()
    for (name, wanted), table in zip(targets(pictures).items(), words.tables(), strict=True):
        sums += F.pad(table, (0, 0, 0, 1))[wanted.clamp(max=len(CHOICES[name]))]
    turn = torch.linalg.lstsq(F.pad(tokens, (0, 1), value=1.0).flatten(0, 1), sums.flatten(0, 1)).solution
    last.weight.copy_(turn[:-1].T @ last.weight)
    last.bias.copy_(turn[:-1].T @ last.bias + turn[-1])
    return words


@torch.no_grad()
def told_right(tokens: Tensor, words: Words, pictures: Sequence[Picture]) -> dict[str, float]:
    """How often the nearest word is right; those for digit and ink in cells that have one."""
    found, near = {}, words(tokens)
    for name, wanted in targets(pictures).items():
        there = wanted < len(CHOICES[name])
        found[name] = float((near[name][..., : len(CHOICES[name])].argmax(-1) == wanted)[there].float().mean())
    return found
