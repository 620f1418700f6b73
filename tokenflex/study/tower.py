"""Stage 0: teaches the pretrained tower to read, and its tokens to look like words, without running the language model.

The ImageNet weights know objects but were never shown text. Linear heads on every cell name the character whose middle
lies there, its colour, and what a drawing shows there; linear heads on the mean of all cells name the kinds of image,
chart and sign. The heads are thrown away. The projector is trained beside them to give, for every cell, the sum of the
language model's own embeddings of what the cell shows, so that stage 1 starts from tokens that read like text.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from tokenflex.study.charts import CHARTS
from tokenflex.study.images import CHARACTERS, COLOURS, INKS, KINDS, StudyImage
from tokenflex.study.sources import DRAWINGS

BATCH = 32
FROZEN = 2
"""Stages of the tower that stay as they are: edges and colours, at a resolution that would cost half of the time."""
EMPTY_WEIGHT = 0.1
SHARP = 8.0
"""Logits per square distance of a word to its nearest one: where a token is a word exactly, that is nearly certain."""
CELLS: dict[str, Sequence[str]] = {"character": CHARACTERS, "ink": INKS, "subject": list(DRAWINGS)}
"""What one cell may show; one class more stands for nothing."""
WHOLE: dict[str, Sequence[str]] = {"type": KINDS, "chart": CHARTS, "colour": list(COLOURS)}
"""Answers of the questions about a whole image, by their kind."""
UNASKED = -100


class Targets(NamedTuple):
    """Class indices.

    Attributes:
        cells: for each of `CELLS`, ``(images, rows, cols)``.
        whole: for each of `WHOLE`, ``(images,)``; -100 where it isn't asked.
    """

    cells: tuple[Tensor, ...]
    whole: tuple[Tensor, ...]


class CellHeads(nn.Module):
    """What each cell and the whole image show.

    Args:
        width: of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.Linear(width, len(classes) + 1) for classes in CELLS.values()])
        self.whole = nn.ModuleList([nn.Linear(width, len(classes)) for classes in WHOLE.values()])

    def forward(self, features: Float[Tensor, "images rows cols width"]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits ``(images, rows, cols, classes)`` for each of `CELLS`, and ``(images, classes)`` of `WHOLE`."""
        mean = features.mean((1, 2))
        return [head(features) for head in self.cells], [head(mean) for head in self.whole]


def nearest(vectors: Float[Tensor, "words dim"]) -> float:
    """The mean square distance of vectors to the nearest that isn't the same; 1 where all are the same."""
    apart = torch.cdist(vectors, vectors).square()
    found = apart.masked_fill(apart <= 1e-6 * apart.max(), torch.inf).amin(-1)
    found = found[found.isfinite()]
    return float(found.mean()) if len(found) else 1.0


class Embedded(nn.Module):
    """What cells show, as sums of the language model's own embeddings; nothing is trained.

    A cell with a character is the character and its colour; one of a drawing is its name. Every other cell is the kind
    of the image, with the kind of the chart or the colour of the sign.

    Args:
        tokenizer, embeddings: of the language model. What takes several tokens is their mean.
    """

    def __init__(self, tokenizer: Any, embeddings: nn.Embedding) -> None:
        super().__init__()
        table = embeddings.weight.detach().float()

        def vector(text: str) -> Tensor:
            written = text if text.isdecimal() else f" {text}"
            return table[tokenizer(written, add_special_tokens=False).input_ids].mean(0)

        def vectors(texts: Sequence[str]) -> Tensor:
            return torch.stack([*map(vector, texts), torch.zeros(table.shape[1])])

        self.cells = [vectors(classes) for classes in CELLS.values()]
        self.whole = [vectors(classes) for classes in WHOLE.values()]
        self.scale = float(table.square().mean())
        self.near = [nearest(words[:-1]) for words in self.cells]

    def forward(
        self, wanted: Targets
    ) -> tuple[Float[Tensor, "images rows cols dim"], Float[Tensor, "images rows cols"]]:
        """The vectors, and how much each cell counts: empty ones a tenth."""
        shown = torch.stack([table[found] for table, found in zip(self.cells, wanted.cells, strict=True)]).sum(0)
        whole = torch.stack([table[found.clamp(min=-1)] for table, found in zip(self.whole, wanted.whole, strict=True)])
        empty = torch.stack([found == len(table) - 1 for table, found in zip(self.cells, wanted.cells, strict=True)])
        nothing = empty.all(0)
        return shown + whole.sum(0)[:, None, None] * nothing[..., None], torch.where(nothing, EMPTY_WEIGHT, 1.0)

    def loss(self, tokens: Float[Tensor, "images rows cols dim"], wanted: Targets) -> Float[Tensor, ""]:
        """How far tokens are from their vectors, and whether other words would be nearer.

        The mean square distance, in mean squares of an embedding; and for each of `CELLS` the cross-entropy of the
        words by their square distances. Digits' embeddings are so alike that the first term alone leaves them mixed up.
        """
        vectors, weight = self(wanted)
        total = ((tokens - vectors).square().mean(-1) * weight).sum() / weight.sum() / self.scale
        for table, classes, near in zip(self.cells, wanted.cells, self.near, strict=True):
            shown = classes < len(table) - 1
            if bool(shown.any()):
                left = tokens[shown] - vectors[shown] + table[classes[shown]]
                nearer = 2 * left @ table[:-1].T - table[:-1].square().sum(-1)
                total = total + F.cross_entropy(SHARP * nearer / near, classes[shown])
        return total


def targets(images: Sequence[StudyImage]) -> Targets:
    """What the heads are to say of these images."""
    whole = {kind: [UNASKED] * len(images) for kind in WHOLE}
    for i, image in enumerate(images):
        for question in image.questions:
            if question.kind in whole:
                whole[question.kind][i] = WHOLE[question.kind].index(question.answer)
    cells = torch.from_numpy(np.stack([image.cells for image in images]))
    subject = torch.from_numpy(np.stack([image.subject for image in images]))
    return Targets((cells[..., 0], cells[..., 1], subject), tuple(torch.tensor(found) for found in whole.values()))


def loss(found: tuple[Sequence[Tensor], Sequence[Tensor]], wanted: Targets) -> Float[Tensor, ""]:
    """The sum of the heads' cross-entropies; empty cells weigh a tenth."""
    total = found[0][0].new_zeros(())
    for logits, classes in zip(found[0], wanted.cells, strict=True):
        weight = torch.ones(logits.shape[-1])
        weight[-1] = EMPTY_WEIGHT
        total = total + F.cross_entropy(logits.flatten(0, -2), classes.flatten(), weight=weight)
    for logits, classes in zip(found[1], wanted.whole, strict=True):
        if (classes != UNASKED).any():
            total = total + F.cross_entropy(logits, classes, ignore_index=UNASKED)
    return total


def seen(processor: Any, images: Sequence[StudyImage]) -> Float[Tensor, "images 3 height width"]:
    """Images as the tower takes them."""
    return processor.image_processor([image.image for image in images], return_tensors="pt")["pixel_values"]


@torch.no_grad()
def standardise(projector: nn.Sequential, features: Float[Tensor, "images rows cols width"]) -> None:
    """Let a projector see every channel with mean 0 and deviation 1, by its first layer's own weights.

    Layers of an encoder that are joined have very different scales; a fresh projector would only learn the mean.
    """
    first: Any = projector[0]
    flat = features.flatten(0, -2)
    first.weight.div_(flat.std(0).clamp(min=1e-3))
    first.bias.sub_(first.weight @ flat.mean(0))


def teach(
    host: Any,
    processor: Any,
    draw: Callable[[int], list[StudyImage]],
    *,
    steps: int,
    rate: float,
    seed: int,
    tick: Callable[[], None],
) -> CellHeads:
    """Train tower and projector in place.

    Args:
        host: of `tokenflex.compose`, with an encoder of timm that has ``blocks``.
        processor: the host's.
        draw: from a number of images to that many new ones.
        steps: optimizer steps of 32 images.
        rate: peak learning rate of heads and projector; the tower's is a fifth of it.
        tick: called after every step.

    Returns:
        The heads, for those who want to see what they read.
    """
    torch.manual_seed(seed)
    tower, projector = host.vision_tower, host.multi_modal_projector
    heads, words = CellHeads(host.config.vision_width), Embedded(processor.tokenizer, host.get_input_embeddings())
    standardise(projector, tower.eval()(seen(processor, draw(BATCH))).permute(0, 2, 3, 1))
    own = [*heads.parameters(), *projector.parameters()]
    learned = [parameter for part in tower.trunk.blocks[FROZEN:] for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": learned, "lr": rate / 5}, {"params": own}], lr=rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    tower.train().requires_grad_(False)
    for parameter in learned:
        parameter.requires_grad_(True)
    for _ in range(steps):
        chosen = draw(BATCH)
        features, wanted = tower(seen(processor, chosen)).permute(0, 2, 3, 1), targets(chosen)
        total = loss(heads(features), wanted) + words.loss(projector(features), wanted)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
        tick()
    tower.eval().requires_grad_(True)
    return heads
