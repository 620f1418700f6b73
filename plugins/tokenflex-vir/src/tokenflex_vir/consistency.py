"""Visual consistency learning (ViCO): with fewer tokens, predict what would be predicted with all of them."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.utils import ModelOutput

from tokenflex.errors import ConfigError
from tokenflex.model import Encoded, FlexModel
from tokenflex_vir.answers import Answers, answers, divergence

LEVELS = ("drawn", "all")


@dataclass(frozen=True)
class ConsistencyObjective:
    """``KL(p_ref(. | finest level) || p(. | level))``, the mean over answer tokens (ViCO, arXiv 2508.18265).

    For `tokenflex.training.FlexTrainer` in stage 3, as its ``objective``.

    Attributes:
        reference: the frozen model whose predictions at its finest level are kept to, as published: a copy made before
            training, on the same device. None: the model in training itself, at its finest level and without gradients,
            so that the finest level isn't held in place.
        levels: ``drawn``, as published: one level per image, uniformly from all levels. ``all``: every level in turn,
            the same for all images, and the mean over them; in one graph, which takes memory for all of them.
        weight: of the cross-entropy of the answer tokens at the same levels, added to the divergence.
        seed: of the draw. What is drawn depends on it and on the batch's token ids alone, so that a resumed run draws
            what the whole run would have drawn, and processes draw apart. The same batch draws the same again.
    """

    reference: FlexModel | None = field(default=None, repr=False)
    levels: str = "drawn"
    weight: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.levels not in LEVELS:
            raise ConfigError(f"levels={self.levels!r}; use one of {', '.join(LEVELS)}.")
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ConfigError(f"weight={self.weight!r} must be a finite number of 0 or more.")

    def __call__(self, flex: FlexModel, batch: Mapping[str, Any]) -> ModelOutput:
        """The loss of a batch.

        A mean over its answer tokens, or their sum over ``num_items_in_batch`` where that is given; 0, and still part
        of the graph, when there are none.

        Returns:
            ``loss``; ``consistency`` and ``language``, its two terms before weighting, detached; ``levels``, which were
            run, ``(passes, images)``.

        Raises:
            ConfigError: the model is its own reference, or has nothing coarser than its finest level.
        """
        encoded = flex.encode(batch)
        levels = self._levels(flex, batch, len(encoded.images))
        wanted = reference_answers(self.reference, flex, batch, encoded)
        consistency, language = [], []
        for row in levels.tolist():
            given = answers(flex, batch, encoded, row)
            items = batch.get("num_items_in_batch", max(len(given.targets), 1))
            consistency.append(divergence(wanted.logits, given.logits).sum() / items)
            language.append(given.losses().sum() / items)
        apart, likelihood = torch.stack(consistency).mean(), torch.stack(language).mean()
        loss = apart + self.weight * likelihood if self.weight else apart
        if encoded.images and bool((levels == flex.compressor.num_levels - 1).all()):
            loss = loss + _unused(flex, encoded)
        return ModelOutput(
            loss=loss,
            consistency=apart.detach(),
            language=likelihood.detach(),
            levels=levels.to(loss.device),
        )

    def _levels(self, flex: FlexModel, batch: Mapping[str, Any], images: int) -> Int[Tensor, "passes images"]:
        """The levels to run, image by image, on the CPU."""
        number = flex.compressor.num_levels
        coarser = number - 1 if self.reference is None else number
        if coarser == 0:
            raise ConfigError(
                "this scaler has a single level, so without a reference there is nothing to learn. Use a scaler with "
                "more levels, or give the objective a reference."
            )
        if images == 0:
            return torch.zeros(1, 0, dtype=torch.long)
        if self.levels == "all":
            return torch.arange(coarser)[:, None].expand(-1, images)
        generator = torch.Generator().manual_seed(seed_of(self.seed, batch["input_ids"]))
        drawn = torch.randint(number, (1, images), generator=generator)
        if bool((drawn >= coarser).all()):  # The model would be compared with itself.
            drawn = torch.randint(coarser, (1, images), generator=generator)
        return drawn


def _unused(flex: FlexModel, encoded: Encoded) -> Float[Tensor, ""]:
    """A zero that depends on the scaler's parameters: other processes' draws may have used them."""
    return flex.compressor.scale(encoded.images[:1], [0])[0].features.float().sum() * 0.0


@torch.no_grad()
def reference_answers(
    reference: FlexModel | None, flex: FlexModel, batch: Mapping[str, Any], encoded: Encoded
) -> Answers:
    """What the reference predicts at its finest level, without gradients.

    Args:
        reference: put into evaluation mode; None: ``flex`` as it is.
        encoded: what ``flex`` made of the batch.

    Raises:
        ConfigError: the reference is ``flex`` itself.
    """
    if reference is flex:
        raise ConfigError(
            "the reference is the model in training itself. Give a frozen copy, e.g. copy.deepcopy(flex), or leave "
            "reference out to compare the model with its own finest level."
        )
    if reference is not None:
        reference.eval()
        flex, encoded = reference, reference.encode(batch)
    return answers(flex, batch, encoded, [flex.compressor.num_levels - 1] * len(encoded.images))


def seed_of(seed: int, ids: Int[Tensor, "rows length"]) -> int:
    """A seed for a batch: the same for the same token ids and ``seed``, unrelated for others."""
    digest = hashlib.blake2b(f"{seed} ".encode() + ids.cpu().numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
