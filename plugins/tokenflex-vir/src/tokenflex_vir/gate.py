"""Training the gate: labels from the frozen model's consistency losses, then binary cross-entropy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.utils import ModelOutput

from tokenflex.errors import ConfigError
from tokenflex.model import Encoded, FlexModel
from tokenflex.training import shifted
from tokenflex_vir.answers import IGNORE, answers, divergence
from tokenflex_vir.consistency import reference_answers
from tokenflex_vir.labels import RunningQuantile, gate_loss, loss_ratio, vir_targets

NUM_LEVELS = 2


@dataclass(frozen=True)
class GateObjective:
    """Teach the gate which images lose by compression (arXiv 2508.18265).

    For `tokenflex.training.FlexTrainer` in stage 4, as its ``objective``. A row's losses with all its images at the
    coarse and at the fine level give a ratio; its images need the fine level if that reaches the running quantile.

    Attributes:
        threshold: of the ratios; the batch's own count as well. A trainer doesn't save it with its checkpoints.
        reference: as for `ConsistencyObjective`. None: the losses at the fine level are 0, and the ratios rank rows by
            their loss at the coarse level alone.
    """

    threshold: RunningQuantile
    reference: FlexModel | None = field(default=None, repr=False)

    def count(self, flex: FlexModel, batch: Mapping[str, Any]) -> int:
        """How many images of a batch can have a label, those of rows with answers, before anything is encoded."""
        answered = (shifted(batch["labels"]) != IGNORE).any(-1)
        return sum(bool(answered[row]) for row in flex.adapter.read(batch).rows)

    def __call__(self, flex: FlexModel, batch: Mapping[str, Any]) -> ModelOutput:
        """``loss``, and per image ``targets`` and ``scores``, ``(images, levels)``.

        The loss is a mean over the batch's images that have a label, or their sum over ``num_items_in_batch`` where
        that is given.

        The host is put into evaluation mode, and its losses are computed without gradients.

        Raises:
            ConfigError: the scaler has more or fewer than two levels.
            InputError: the router can't judge an image; the message names it.
        """
        if flex.compressor.num_levels != NUM_LEVELS:
            raise ConfigError(
                f"the gate chooses between 2 levels, and this scaler has {flex.compressor.num_levels}. Use the scaler "
                "'two-rates', or another one with two levels."
            )
        flex.host.eval()
        with torch.no_grad():
            encoded = flex.encode(batch)
        if not encoded.images:
            return ModelOutput(loss=sum(p.sum() for p in flex.compressor.parameters()) * 0.0)
        coarse, fine = self._losses(flex, batch, encoded)
        self.threshold.update(loss_ratio(coarse, fine))
        rows = [image.row for image in encoded.images]
        targets = vir_targets(coarse, fine, self.threshold.value.to(coarse.device))[rows]
        scores = flex.scores(encoded)
        flex.compressor.require_judged(scores, encoded.images)
        return ModelOutput(
            loss=gate_loss(scores, targets, batch.get("num_items_in_batch")), targets=targets, scores=scores.detach()
        )

    @torch.no_grad()
    def _losses(
        self, flex: FlexModel, batch: Mapping[str, Any], encoded: Encoded
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Each row's consistency losses with its images at the coarse and at the fine level."""
        wanted = reference_answers(self.reference, flex, batch, encoded)

        def at(level: int) -> Float[Tensor, " rows"]:
            given = answers(flex, batch, encoded, [level] * len(encoded.images))
            return given.per_row(divergence(wanted.logits, given.logits))

        coarse = at(0)
        return coarse, torch.zeros_like(coarse) if self.reference is None else at(1)
