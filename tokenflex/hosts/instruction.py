"""Which tokens of a prompt are the user's instruction: one definition for training and inference.

``last-turn``: the prompt tokens after the last turn marker, up to the answer. ``prompt``: the published behaviour,
every word of the prompt (AVG-LLaVA's code uses all unmasked prompt tokens). Answers never count: a token whose
label is set is an answer, and with ``last-turn`` nothing after the last answer's start counts either.
``published``: the same prompt tokens as ``prompt``, and behind the mask the rows around them that the published text
filter falls back on when there are too few prompt tokens (see `published_words`).
"""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from tokenflex.contracts import HostBatch, Instruction
from tokenflex.errors import ConfigError
from tokenflex.hosts.placeholders import IGNORE, PLACEHOLDER, padding_side

Scope = Literal["last-turn", "prompt", "published"]
Markers = Sequence[int] | Sequence[Sequence[int]]
ZERO = -1


def instruction_mask(
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Tensor | None,
    labels: Int[Tensor, "rows length"] | None,
    *,
    image_token_id: int,
    scope: Scope = "last-turn",
    marker: Markers = (),
) -> Bool[Tensor, "rows length"]:
    """True for the tokens that make up each row's instruction.

    Args:
        input_ids, attention_mask, labels: on the CPU.
        labels: when given, supervised positions are answers.
        marker: ids of the text that opens a user turn in the chat template, e.g. those of ``USER:``; or several such,
            where its tokens depend on what stands before it (see `tokenflex.hosts.turns`). Without a marker turns can't
            be told apart, and ``last-turn`` takes all text before the last answer.
    """
    ids = input_ids.numpy()
    prompt = ids != image_token_id
    if attention_mask is not None:
        prompt &= (attention_mask != 0).numpy()
    positions = np.arange(ids.shape[1])
    if labels is not None:
        targets = labels.numpy() != IGNORE
        if scope != "last-turn":
            return torch.from_numpy(prompt & ~targets)
        prompt &= positions < _last_run_start(targets)[:, None]
    known = markers(marker)
    if scope == "last-turn" and known:
        begins = np.stack([_after_last_marker(ids, prompt, one) for one in known]).max(0)
        prompt &= positions >= begins[:, None]
    return torch.from_numpy(prompt)


def markers(spec: Any) -> tuple[tuple[int, ...], ...]:
    """One marker or several, as several; empty ones left out.

    Raises:
        ConfigError: these aren't ids.
    """
    listed = list(spec) if isinstance(spec, Sequence) else [spec]
    several = [listed] if all(isinstance(one, int) for one in listed) else listed
    if not all(isinstance(one, Sequence) and all(type(token) is int for token in one) for one in several):
        raise ConfigError(
            f"marker={spec!r}; give the ids of the prompt tokens that open a user's turn, or several such lists."
        )
    return tuple(tuple(one) for one in several if isinstance(one, Sequence) and one)


def published_words(
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Tensor | None,
    labels: Int[Tensor, "rows length"] | None,
    *,
    image_token_id: int,
    pad_token_id: int,
    images: Sequence[int],
) -> tuple[Int[Tensor, "rows prompt"], Bool[Tensor, "rows prompt"]]:
    """What the published router is given: (ids, mask), ``ZERO`` for a row of zeros, mask True for the instruction.

    Each image leaves one row of zeros at the padded end; answers and padding stay, masked. The length is that of
    the published prompt, in which an image is one token.

    Args:
        input_ids, attention_mask, labels: on the CPU.
        images: number of images per row.
    """
    attended = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
    prompt = instruction_mask(input_ids, attention_mask, labels, image_token_id=image_token_id, scope="published")
    texts = [row[keep] for row, keep in zip(input_ids, attended & (input_ids != image_token_id), strict=True)]
    masks = [row[keep] for row, keep in zip(prompt, attended & (input_ids != image_token_id), strict=True)]
    length = max(len(text) + count for text, count in zip(texts, images, strict=True))
    ids = input_ids.new_full((len(texts), length), pad_token_id)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    left = padding_side(attended) == "left"
    for row, (text, keep, count) in enumerate(zip(texts, masks, images, strict=True)):
        where = slice(length - len(text), length) if left else slice(0, len(text))
        ids[row, where], mask[row, where] = text, keep
        ids[row, slice(0, count) if left else slice(length - count, length)] = ZERO
    return ids, mask


def _last_run_start(targets: Bool[np.ndarray, "rows length"]) -> Int[np.ndarray, " rows"]:
    """Where the last run of answer tokens begins; the row's length if it has none."""
    begins = targets & ~np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    length = targets.shape[1]
    last = length - 1 - begins[:, ::-1].argmax(-1)
    return np.where(begins.any(-1), last, length)


def _after_last_marker(
    ids: Int[np.ndarray, "rows length"], prompt: Bool[np.ndarray, "rows length"], marker: tuple[int, ...]
) -> Int[np.ndarray, " rows"]:
    """The position after the last marker that lies within ``prompt``; 0 if there is none."""
    rows, length = ids.shape
    if length < len(marker):
        return np.zeros(rows, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view
    hits = (windows(ids, len(marker), 1) == np.array(marker)).all(-1) & windows(prompt, len(marker), 1).all(-1)
    return np.where(hits, np.arange(hits.shape[1]) + len(marker), 0).max(-1)


def without_placeholders(input_ids: Tensor, placeholder_ids: Collection[int], fill: int) -> Tensor:
    """The ids, on the CPU, with ``fill`` for every placeholder, whatever its modality."""
    ids = input_ids.numpy()
    return torch.from_numpy(np.where(np.isin(ids, [*placeholder_ids]), ids.dtype.type(fill), ids))


def read_instructions(
    batch: HostBatch, placeholder_ids: Collection[int], scope: Scope, marker: Markers, embed: nn.Module
) -> tuple[Instruction, ...]:
    """The input embeddings of each row's prompt tokens, detached; see `instruction_mask`."""
    ids = batch.cpu["input_ids"]
    mask = instruction_mask(
        without_placeholders(ids, placeholder_ids, PLACEHOLDER),
        batch.cpu.get("attention_mask"),
        batch.cpu.get("labels"),
        image_token_id=PLACEHOLDER,
        scope=scope,
        marker=marker,
    )
    return instructions_of(batch, mask, embed)


def embedded(ids: Int[Tensor, "rows length"], embed: nn.Module) -> Tensor:
    """``(rows, length, dim)``, without the noise that NEFTune adds in training (arXiv 2310.05914).

    Levels are chosen in training as they are afterwards.
    """
    noisy = getattr(embed, "neftune_noise_alpha", None) is not None
    return embed.forward(ids) if noisy else embed(ids)


def instructions_of(batch: HostBatch, mask: Bool[Tensor, "rows length"], embed: nn.Module) -> tuple[Instruction, ...]:
    """One instruction per row from the prompt tokens that ``mask``, on the CPU, marks; embeddings are detached.

    The prompt tokens of all rows are embedded together, and nothing is read back from the device.
    """
    prompt = mask.numpy()
    sizes = prompt.sum(-1).tolist()
    table = batch.cpu["input_ids"].numpy()[prompt]
    with torch.no_grad():
        found = embedded(torch.from_numpy(table).to(batch.inputs["input_ids"].device)[None], embed)[0]
    there = torch.ones(max(sizes), dtype=torch.bool, device=found.device)
    return tuple(Instruction(row, there[: len(row)]) for row in found.split(sizes))


def published_instructions(
    batch: HostBatch, placeholder_ids: Sequence[int], pad_token_id: int, embed: nn.Module
) -> tuple[Instruction, ...]:
    """What the published router is given of each row, detached; see `published_words`.

    Args:
        placeholder_ids: of images first.
    """
    image = placeholder_ids[0]
    ids, mask = published_words(
        without_placeholders(batch.cpu["input_ids"], placeholder_ids, image),
        batch.cpu.get("attention_mask"),
        batch.cpu.get("labels"),
        image_token_id=image,
        pad_token_id=pad_token_id,
        images=[batch.rows.count(row) for row in range(len(batch.cpu["input_ids"]))],
    )
    ids, mask = (tensor.to(batch.inputs["input_ids"].device) for tensor in (ids, mask))
    with torch.no_grad():
        rows = embedded(ids.clamp(min=0), embed).masked_fill(ids[..., None] == ZERO, 0.0)
    return tuple(Instruction(row, keep) for row, keep in zip(rows, mask, strict=True))
