"""Requests of a batch as the model takes them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenflex.chat import special_tokens, written
from tokenflex.contracts import Decision
from tokenflex.hosts import stock
from tokenflex.model import FlexModel
from tokenflex.serving.server.asking import Ask
from tokenflex.serving.server.refusals import RefusedError

PLACEHOLDERS = ("image_token", "video_token", "audio_token")


class Reader:
    """Makes batches of requests.

    Args:
        flex: the model, with or without its language model's weights.
        processor: the host's.
    """

    def __init__(self, flex: FlexModel, processor: Any) -> None:
        self.flex, self.processor = flex, processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        found = {getattr(one, name, None) for name in PLACEHOLDERS for one in (processor, self.tokenizer)}
        self.placeholders = tuple(sorted(mark for mark in found if isinstance(mark, str) and mark))

    def inputs(self, asks: Sequence[Ask]) -> dict[str, Any]:
        """The processor's batch, padded on the left, on the model's device; all with images or all without.

        Raises:
            DataError: the chat template refuses a conversation.
        """
        texts = [written(self.processor, ask.messages, "messages", reply=True) for ask in asks]
        options: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        options |= special_tokens(self.processor, texts)
        images = [list(ask.images) for ask in asks]
        batch = self.processor(text=texts, images=images if any(images) else None, **options)
        return {name: one.to(self.flex.device) if isinstance(one, Tensor) else one for name, one in batch.items()}

    def choice(self, inputs: dict[str, Any], asks: Sequence[Ask]) -> dict[str, Any]:
        """``level`` or ``budget`` of a call that answers them, which all name levels, or none, or some of them each.

        Raises:
            RefusedError: the host decides for each tile of an image by itself, and a request has several levels.
        """
        levels = [level for ask in asks for level in ask.levels]
        budget = asks[0].budget
        if not any(level is not None for level in levels):
            return {} if budget is None or not levels else {"budget": budget}
        units = self._levels(inputs, asks)
        if None in units:
            routed = self.flex.decide(**inputs, budget=budget)
            units = [one.level if level is None else level for one, level in zip(routed, units, strict=True)]
        return {"level": units}

    def within_context(self, inputs: dict[str, Any], asks: Sequence[Ask], choice: dict[str, Any]) -> dict[str, Any]:
        """The choice again, once it is sure that prompts and answers fit into the model's context.

        Where it depends on what the router decides, the router is asked first, and its levels are the choice.

        Raises:
            RefusedError: a prompt is too long.
        """
        config: Any = stock.base_of(self.flex.host).config
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        lengths, new = prompt_lengths(inputs, {}), max(ask.sampling.new_tokens for ask in asks)
        if limit is None or max(lengths) + new <= limit:
            return choice
        if asks[0].levels:
            decisions = self.flex.decide(**inputs, **choice)
            choice = {"level": [decision.level for decision in decisions]}
            rows = self.by_row(inputs, decisions, len(asks))
            lengths = [
                length - sum(one.of - one.tokens for one in row) for length, row in zip(lengths, rows, strict=True)
            ]
        if max(lengths) + new > limit:
            raise RefusedError(
                f"The prompt has {max(lengths)} tokens and the answer may have {new}; the model's context has {limit}. "
                "Shorten the conversation, ask for a smaller max_completion_tokens, or choose a coarser level.",
                "context_length_exceeded",
            )
        return choice

    def by_row(self, inputs: dict[str, Any], decisions: Sequence[Decision], rows: int) -> list[list[Decision]]:
        """The decisions on each row's images, row by row."""
        found: list[list[Decision]] = [[] for _ in range(rows)]
        if decisions:
            for row, decision in zip(self.flex.adapter.read(inputs).rows, decisions, strict=True):
                found[row].append(decision)
        return found

    def _levels(self, inputs: dict[str, Any], asks: Sequence[Ask]) -> list[int | None]:
        """One level for everything that is decided about: images, or their tiles."""
        rows, found = self.flex.adapter.read(inputs).rows, list[int | None]()
        for row, ask in enumerate(asks):
            units = rows.count(row)
            if units != len(ask.levels) and len(set(ask.levels)) > 1:
                raise RefusedError(
                    "This model decides for every tile of an image; ask for one level, or detail, for all."
                )
            found += ask.levels if units == len(ask.levels) else ask.levels[:1] * units
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text that generated ids stand for."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


def prompt_lengths(inputs: dict[str, Any], output: Any) -> list[int]:
    """How many prompt tokens of every row the language model read."""
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    compact = output.get("compact_attention_mask")
    if compact is not None:
        new = output["sequences"].shape[1] - inputs["input_ids"].shape[1]
        mask = compact[:, : compact.shape[1] - new]
    return [int(count) for count in (mask != 0).sum(dim=1).tolist()]
