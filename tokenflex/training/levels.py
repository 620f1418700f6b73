"""The host's losses at several levels: one encode, logits at answer positions only, and three ways through the levels.

``joint``    level after level in one graph: the plain form, and the largest.
``low``      each level is backpropagated as soon as its loss is known, into the encoded features; what was gathered
             there goes through the vision tower once. One level's graph is alive at a time. Where every level has an
             image of its own, it is encoded and backpropagated with its level, the vision tower included.
``packed``   all levels of all rows in one packed row: one pass through the language model, so one gather of its
             parameters where they are sharded, and no padding.

All three give the same gradients.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from tokenflex.contracts import VisualTokens
from tokenflex.hosts import grouped
from tokenflex.hosts.packed import pack
from tokenflex.hosts.placeholders import IGNORE
from tokenflex.hosts.targets import chunked_losses, shifted, target_losses
from tokenflex.model import Encoded, FlexModel, encoding

Batch = Mapping[str, Any]
Backward = Callable[[Tensor], None]


def language_loss(flex: FlexModel, inputs: Batch) -> Float[Tensor, ""]:
    """Cross-entropy of the answer tokens: their mean, or their sum over ``num_items_in_batch`` where that is given.

    0, and still part of the graph, when there are none.

    Args:
        inputs: a shortened batch with ``labels``.
    """
    losses = _answer_losses(flex, inputs)
    return losses.sum() / _items(inputs, losses)


def joint(flex: FlexModel, batch: Batch, encoded: Encoded, levels: Sequence[int]) -> Float[Tensor, " levels"]:
    """The loss at each level, in one graph."""
    return torch.stack([language_loss(flex, at_level(flex, batch, encoded, level)) for level in levels])


def packed(flex: FlexModel, batch: Batch, encoded: Encoded, levels: Sequence[int]) -> Float[Tensor, " levels"]:
    """The loss at each level, from one packed row.

    Raises:
        InputError: the host's rows can't be packed.
    """
    batches = [at_level(flex, batch, encoded, level) for level in levels]
    for one in batches:
        one.pop("num_items_in_batch", None)
    losses = _answer_losses(flex, pack(flex.adapter, batches)).view(len(levels), -1)
    return losses.sum(-1) / _items(batch, losses[0])


def low(
    flex: FlexModel,
    batch: Batch,
    encoded: Encoded,
    levels: Sequence[int],
    weights: Sequence[float],
    backward: Backward = Tensor.backward,
) -> tuple[Float[Tensor, ""], Float[Tensor, " levels"]]:
    """The weighted sum of the levels' losses, and the losses, detached.

    Gradients of all levels but the shortest are in ``.grad`` on return; those of the shortest, and of what made the
    encoded features, follow when the result is backpropagated. So a wrapper's hooks (DistributedDataParallel) see one
    backward pass, at the end of which all gradients are complete.

    Args:
        weights: of each level.
        backward: what is called with each weighted loss; it must scale as the result will be scaled.
    """
    order = sorted(range(len(levels)), key=lambda i: -levels[i])
    losses: dict[int, Tensor] = {}
    apart, leaves = _detached(encoded)
    with _kept_gathered(flex):
        for i in order[:-1]:
            # A level's own images are encoded anew, since the graph of what was encoded before it is gone.
            loss = language_loss(flex, at_level(flex, batch, replace(apart, made={}), levels[i]))
            losses[i] = loss.detach()
            with torch.autocast(loss.device.type, enabled=False):
                backward(loss * weights[i])
            del loss
    last = language_loss(flex, at_level(flex, batch, encoded, levels[order[-1]]))
    losses[order[-1]] = last.detach()
    total = last * weights[order[-1]]
    for i in order[:-1]:
        total = total + losses[i] * weights[i]
    for source, leaf in leaves:
        if leaf.grad is not None:
            total = total + _Deposit.apply(source, leaf.grad)
    return total, torch.stack([losses[i] for i in range(len(levels))])


def level_feedback(
    flex: FlexModel, batch: Batch, encoded: Encoded, chunk: int | None = None
) -> Float[Tensor, "rows levels"]:
    """Mean negative log-likelihood of each row's answer tokens at every level, in nats per token; NaN without any.

    Args:
        chunk: compute the normaliser over so many entries of the vocabulary at a time.
    """
    columns: list[Tensor] = []
    for level in reversed(range(flex.compressor.num_levels)):
        rows = encoding.in_rows(flex, batch, encoded, [level] * len(encoded.counts), "right")
        groups = grouped.apart(rows, flex.batching)
        means = torch.cat([_row_means(flex, inputs, chunk) for _, inputs in groups])
        places = torch.tensor([row for group, _ in groups for row in group], device=means.device)
        columns.append(means[places.argsort()])
    return torch.stack(columns[::-1], dim=-1)


def at_level(flex: FlexModel, batch: Batch, encoded: Encoded, level: int) -> dict[str, Any]:
    """The shortened batch, padded on the right, with all images at one level."""
    level %= flex.compressor.num_levels
    return dict(flex.at_levels(batch, encoded, [level] * len(encoded.counts), "right").inputs)


def _row_means(flex: FlexModel, inputs: Batch, chunk: int | None) -> Float[Tensor, " rows"]:
    targets = shifted(inputs["labels"])
    predicts = targets != IGNORE
    losses = _answer_losses(flex, inputs, chunk)
    rows = predicts.nonzero()[:, 0]
    return losses.new_zeros(len(targets)).index_add(0, rows, losses) / predicts.sum(-1)


def _answer_losses(flex: FlexModel, inputs: Batch, chunk: int | None = None) -> Float[Tensor, " answers"]:
    rest = {key: value for key, value in inputs.items() if key not in ("labels", "num_items_in_batch")}
    targets, vocabulary = shifted(inputs["labels"]), flex.adapter.vocabulary
    if chunk is not None:
        return chunked_losses(flex.host, rest, targets, chunk, vocabulary)
    return target_losses(flex.host, rest, targets, vocabulary)


def _items(batch: Batch, losses: Float[Tensor, " answers"]) -> Any:
    items = batch.get("num_items_in_batch")
    return max(len(losses), 1) if items is None else items


def _detached(encoded: Encoded) -> tuple[Encoded, list[tuple[Tensor, Tensor]]]:
    """The same images cut off from the graph, and (source, leaf) for every tensor through which it is entered again."""
    leaves: list[tuple[Tensor, Tensor]] = []

    def cut(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.requires_grad:
            return tensor
        leaves.append((tensor, tensor.detach().requires_grad_()))
        return leaves[-1][1]

    def apart(image: VisualTokens) -> VisualTokens:
        planes: Any = tuple(cut(plane) for plane in image.planes)
        features: Any = cut(image.features)
        return replace(image, features=features, planes=planes, separators=cut(image.separators))

    return replace(encoded, images=tuple(apart(image) for image in encoded.images), made={}), leaves


class _Deposit(torch.autograd.Function):
    """A zero whose backward pass hands ``gradient``, already scaled, to ``source``."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return gradient.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


@contextmanager
def _kept_gathered(flex: Any) -> Iterator[None]:
    """Under FSDP2 a backward pass inside forward must not shard the parameters that forward still needs."""
    sharded = isinstance(flex, FSDPModule)
    if sharded:
        flex.set_reshard_after_backward(False, recurse=False)
    try:
        yield
    finally:
        if sharded:
            flex.set_reshard_after_backward(True, recurse=False)
