"""Logits where they are needed: at the positions that predict answer tokens, never for the whole prompt."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
import transformers.modeling_utils
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokenflex.errors import ConfigError
from tokenflex.hosts import stock
from tokenflex.hosts.placeholders import IGNORE
from tokenflex.hosts.varlen import known_ends

BY_MASK = hasattr(transformers.modeling_utils, "slice_logits_to_keep")
"""Whether this transformers lets rows keep logits at different positions."""


def shifted(labels: Int[Tensor, "rows length"]) -> Int[Tensor, "rows length"]:
    """What each position has to predict: the label behind it."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE)


def target_logits(
    host: Any, inputs: Mapping[str, Any], predicts: Bool[Tensor, "rows length"]
) -> Float[Tensor, "answers vocabulary"]:
    """The host's logits at the chosen positions, row by row; one pass through ``host.forward``.

    Args:
        inputs: keyword arguments for the host, without labels.
        predicts: True at the positions whose logits are wanted.
    """
    arguments = {**inputs, "use_cache": False}
    with known_ends("cu_seq_lens_q" in inputs):
        if not keeps_logits(type(stock.base_of(host))):
            return host(**arguments).logits[predicts]
        if BY_MASK:
            return host(**arguments, logits_to_keep=predicts).logits
        columns = predicts.any(0).nonzero()[:, 0]
        return host(**arguments, logits_to_keep=columns).logits[predicts[:, columns]]


def target_losses(
    host: Any, inputs: Mapping[str, Any], targets: Int[Tensor, "rows length"], vocabulary: int | None = None
) -> Float[Tensor, " answers"]:
    """Negative log-likelihood of each answer token, in float32, from `target_logits`; arguments as `chunked_losses`."""
    predicts = targets != IGNORE
    logits = target_logits(host, inputs, predicts)[..., :vocabulary]
    return F.cross_entropy(logits.float(), targets[predicts], reduction="none")


@functools.cache
def keeps_logits(host: type) -> bool:
    """Whether the host's forward can leave logits out."""
    return "logits_to_keep" in inspect.signature(getattr(host, "forward")).parameters  # noqa: B009


def chunked_losses(
    host: Any,
    inputs: Mapping[str, Any],
    targets: Int[Tensor, "rows length"],
    chunk: int,
    vocabulary: int | None = None,
) -> Float[Tensor, " answers"]:
    """Negative log-likelihood of each target, without ever holding logits of more than ``chunk`` of the vocabulary.

    Takes the language model's last hidden states and its output embeddings. Hosts that do more with their logits than
    that (a cap, a scale) have other losses; `agrees_in_chunks` tells.

    Args:
        targets: what each position predicts, -100 for nothing.
        vocabulary: as `HostAdapter.vocabulary`.

    Raises:
        ConfigError: the host's output embeddings are no linear layer.
    """
    model = stock.base_of(host)
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            f"the output embeddings of {type(model).__name__} are a {type(head).__name__}, not one linear layer, so "
            "the vocabulary can't be taken in chunks. Leave vocabulary_chunk out."
        )
    predicts = targets != IGNORE
    hidden = model.base_model(**{**inputs, "use_cache": False})[0][predicts]
    wanted = targets[predicts]
    total = hidden.new_full((len(hidden),), float("-inf"), dtype=torch.float32)
    own = torch.zeros_like(total)
    size = len(head.weight) if vocabulary is None else vocabulary
    for first in range(0, size, chunk):
        last = min(first + chunk, size)
        bias = None if head.bias is None else head.bias[first:last]
        logits = F.linear(hidden, head.weight[first:last], bias).float()
        total = torch.logaddexp(total, logits.logsumexp(-1))
        here = (wanted >= first) & (wanted < last)
        found = logits.gather(-1, (wanted - first).clamp(0, last - first - 1)[:, None])[:, 0]
        own = torch.where(here, found, own)
    return total - own


def agrees_in_chunks(
    host: Any, inputs: Mapping[str, Any], targets: Int[Tensor, "rows length"], chunk: int, vocabulary: int | None = None
) -> bool:
    """Whether `chunked_losses` gives the losses of the host's own logits, to 1e-2 nats in half precision, else 1e-4."""
    whole = target_losses(host, inputs, targets, vocabulary)
    parts = chunked_losses(host, inputs, targets, chunk, vocabulary)
    exact = stock.base_of(host).dtype == torch.float32
    return bool(torch.allclose(whole, parts, rtol=1e-3, atol=1e-4 if exact else 1e-2))
