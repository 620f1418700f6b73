"""What each stage minimises, as functions of a `FlexModel` and a batch.

An objective runs inside ``FlexModel.forward``, so that wrappers around the model keep working. Each encodes
the batch's images once, however many levels it looks at; where levels have images of their own, each of these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers.utils import ModelOutput

from tokenflex.errors import ConfigError
from tokenflex.hosts.placeholders import IGNORE
from tokenflex.hosts.targets import shifted
from tokenflex.model import Encoded, FlexModel
from tokenflex.ops.ranking import rglf_loss, usable
from tokenflex.training import levels as through
from tokenflex.training.levels import at_level, language_loss, level_feedback

Memory = Literal["auto", "joint", "low", "packed"]
Levels = Literal["all", "sandwich"]
FEEDBACK = "feedback"
"""Key of a batch under which stored feedback comes, ``(rows, levels)``."""
VARIABLE_LENGTH = ("flash", "flex", "varlen")
"""Words in the names of attention implementations that skip what a packed row's mask hides."""


@dataclass(frozen=True)
class LanguageObjective:
    """The host's own language-model loss at one level (stages 1 and 2).

    Attributes:
        level: negative counts from the finest, -1.
    """

    level: int = -1

    def __call__(self, flex: FlexModel, batch: Mapping[str, Any]) -> ModelOutput:
        """``loss``: as the host computes it, 0 when the batch has no answer tokens; ``tokens`` and ``chosen``."""
        encoded = flex.encode(batch, look=False)
        loss = _anchored(flex, language_loss(flex, at_level(flex, batch, encoded, self.level)))
        return ModelOutput(loss=loss, **_spent(loss, encoded, [self.level % flex.compressor.num_levels]))


@dataclass(frozen=True)
class MultiGranularityObjective:
    """The mean over levels of the language-model loss (stage 3; AVG-LLaVA, section 3.3).

    Attributes:
        memory: how the levels share memory, with the same gradients: ``joint``, ``low`` or ``packed`` (see
            `tokenflex.training.levels`). ``auto``: ``packed`` where the language model's parameters are sharded, or on
            a GPU with an attention of variable length (flash, flex); elsewhere ``low``.
        levels: ``all``, or ``sandwich``: finest, coarsest and a random one between, which stands for all between, so
            that the expected loss is the mean over all levels. Without gradients it is always all.
        backward: what ``low`` calls with the levels' losses inside forward; it must scale them as the result will be.
    """

    memory: str = "auto"
    levels: str = "all"
    backward: through.Backward = Tensor.backward

    def __post_init__(self) -> None:
        for name, known in (("memory", get_args(Memory)), ("levels", get_args(Levels))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r}; use one of {', '.join(known)}.")

    def __call__(self, flex: FlexModel, batch: Mapping[str, Any]) -> ModelOutput:
        """``loss``: the mean; ``level_losses``: one per level that was run, detached; ``levels``: which these are.

        ``tokens`` and ``chosen`` per image: what each level costs, and which were run.

        After ``low`` the gradients of all levels but one are in ``.grad`` already: backpropagate ``loss`` exactly once,
        as it is.
        """
        encoded = flex.encode(batch, look=False)
        chosen, weights = self._levels(flex.compressor.num_levels if len(encoded.counts) else 0)
        way = self.resolve(flex)
        if way == "low" and torch.is_grad_enabled():
            loss, losses = through.low(flex, batch, encoded, chosen, weights, self.backward)
        else:
            run = through.packed if way == "packed" and len(chosen) > 1 else through.joint
            losses = run(flex, batch, encoded, chosen)
            loss = (losses * losses.new_tensor(weights)).sum()
        loss = _anchored(flex, loss)
        spent = _spent(loss, encoded, chosen)
        return ModelOutput(loss=loss, level_losses=losses.detach(), levels=tuple(chosen), **spent)

    def resolve(self, flex: FlexModel) -> str:
        """The way that ``memory`` means for this model.

        Raises:
            ConfigError: the host's rows can't be packed, or ``low`` can't be had.
        """
        reason, by_engine = flex.adapter.packing_refusal, _by_engine(flex)
        if self.memory == "packed" and reason:
            raise ConfigError(f"memory='packed' can't be had of {flex.adapter.model_type}: {reason}. Use memory='low'.")
        if self.memory == "low" and by_engine:
            raise ConfigError(
                "memory='low' runs several backward passes per step, and ZeRO's engine (or the first FSDP) takes one; "
                "use memory='packed', or FSDP2."
            )
        if self.memory != "auto":
            return self.memory
        config: Any = flex.host.config
        attention = str(getattr(config.get_text_config(), "_attn_implementation", ""))
        lean = flex.device.type != "cpu" and any(name in attention for name in VARIABLE_LENGTH)
        if reason is None and (by_engine or lean or isinstance(flex, FSDPModule)):
            return "packed"
        return "joint" if by_engine else "low"

    def _levels(self, count: int) -> tuple[list[int], list[float]]:
        """Levels to run, coarse to fine, and their weights."""
        if count == 0:
            return [-1], [1.0]
        if self.levels == "all" or count <= 3 or not torch.is_grad_enabled():
            return list(range(count)), [1 / count] * count
        middle = 1 + int(torch.randint(count - 2, ()))
        return [0, middle, count - 1], [1 / count, (count - 2) / count, 1 / count]


@dataclass(frozen=True)
class RGLFObjective:
    """Rank the levels by the frozen LMM's own losses (stage 4; AVG-LLaVA, section 3.3).

    Attributes:
        margin: scale of the ranking margins, in log-probability per nat.
        rank_weight, ce_weight: weights of the ranking and the cross-entropy term.
        tolerance: losses within so many nats per answer token of the best level tie with it, and ties go to the
            coarser level; 0 as published.
        guard: see `tokenflex.ops.ranking.rglf_loss`; False as published.
    """

    margin: float = 1.0
    rank_weight: float = 1.0
    ce_weight: float = 0.1
    tolerance: float = 0.0
    guard: bool = True

    def count(self, flex: Any, batch: Mapping[str, Any]) -> int:
        """How many images of a batch the loss is a mean over, before anything is encoded.

        With ``guard`` these are the images of rows that have answer tokens.

        Args:
            flex: the model, not wrapped: a `FlexModel` or a `RouterModel`.
        """
        rows = list(flex.adapter.read(batch).rows if isinstance(flex, FlexModel) else batch["rows"])
        if not self.guard or not rows:
            return len(rows)
        stored = batch.get(FEEDBACK)
        counts = (shifted(batch["labels"]) != IGNORE).any(-1) if stored is None else usable(stored)
        return int(counts[rows].sum())

    def __call__(self, flex: Any, batch: Mapping[str, Any]) -> ModelOutput:
        """``loss``, and per image ``feedback``, ``scores`` and ``tokens``, all ``(images, levels)``.

        ``chosen``, ``(images, 1)``: the level of the highest score; ``rows``: each image's row of the batch.

        The loss is a mean over the batch's images that count, or their sum over ``num_items_in_batch`` where that is
        given, so that a step's loss is a mean over all its images however it is cut into batches.

        Raises:
            InputError: an image can't be judged, as its scores are NaN; the message names its row.
        """
        if isinstance(flex, FlexModel):
            flex.host.eval()
        stored = batch.get(FEEDBACK)
        with torch.no_grad():
            encoded = flex.encode({key: value for key, value in batch.items() if key != FEEDBACK})
        if not encoded.images:
            return ModelOutput(loss=sum(p.sum() for p in flex.compressor.parameters()) * 0.0)
        scores = flex.scores(encoded)
        flex.compressor.require_judged(scores, encoded.images)
        encoded.made["judged"] = True
        with torch.no_grad():
            losses = level_feedback(flex, batch, encoded) if stored is None else stored
        feedback = losses[[image.row for image in encoded.images]]
        loss = rglf_loss(
            scores,
            feedback,
            margin=self.margin,
            rank_weight=self.rank_weight,
            ce_weight=self.ce_weight,
            tolerance=self.tolerance,
            guard=self.guard,
            samples=_items(batch),
        )
        rows = torch.tensor([image.row for image in encoded.images], device=loss.device)
        spent = _spent(loss, encoded, []) | {"chosen": scores.detach().argmax(-1, keepdim=True)}
        return ModelOutput(loss=loss, feedback=feedback, scores=scores.detach(), rows=rows, **spent)


def _spent(loss: Tensor, encoded: Encoded, levels: Sequence[int]) -> dict[str, Tensor]:
    """What each level of each image costs, and the levels that were run on all of them, where the loss is."""
    tokens = encoded.counts.to(loss.device, non_blocking=True)
    return {"tokens": tokens, "chosen": torch.tensor(levels, device=loss.device).long().expand(len(tokens), -1)}


def _anchored(flex: nn.Module, loss: Tensor) -> Tensor:
    """The same loss as part of the graph, where nothing that trains was used: by rows without images, a projector."""
    if loss.requires_grad or not torch.is_grad_enabled():
        return loss
    return loss + sum(p.sum() for p in flex.parameters() if p.requires_grad) * 0.0


def _items(batch: Mapping[str, Any]) -> Any:
    items = batch.get("num_items_in_batch")
    return items.flatten()[0].clamp(min=1) if isinstance(items, Tensor) else items and max(items, 1)


def _by_engine(flex: nn.Module) -> bool:
    """Whether DeepSpeed's ZeRO-3 or the first FSDP holds the parameters; both take one backward pass per step."""
    zero = any(hasattr(parameter, "ds_id") for parameter in flex.parameters())
    return zero or any(isinstance(module, FullyShardedDataParallel) for module in flex.modules())
