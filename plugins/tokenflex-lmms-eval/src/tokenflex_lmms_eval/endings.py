"""Where an answer ends: at the end-of-sequence token, before one of the task's texts, or at the limit."""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteria

Stopped = Literal["eos", "until", "length"]


@dataclass(frozen=True)
class Ending:
    """An answer as it is handed on.

    Attributes:
        text: without special tokens, without what it ends before, without white space around it.
        tokens: how many were generated for it, the end-of-sequence token included.
        stopped: by what.
    """

    text: str
    tokens: int
    stopped: Stopped


def ending(tokenizer: Any, ids: Sequence[int], until: Sequence[str], eos: Collection[int], pad: int | None) -> Ending:
    """Read one row of new tokens.

    Args:
        ids: the new tokens, padding after the end.
        eos: end-of-sequence tokens.
        pad: what rows are filled up with.
    """
    tokens, stopped = _length(ids, eos, pad)
    text = _decoded(tokenizer, ids[:tokens])
    places = [place for stop in until if (place := text.find(stop)) >= 0]
    if places:
        text, stopped = text[: min(places)], "until"
        # Decoding more tokens never loses a text that was there, so the first prefix that has one is found by halving.
        tokens = 1 + bisect_left(
            range(1, tokens + 1), True, key=lambda count: _contains(_decoded(tokenizer, ids[:count]), until)
        )
    return Ending(text.strip(), tokens, stopped)


class StopBefore(StoppingCriteria):
    """Ends rows as soon as what they generated contains one of some texts; the prompt isn't looked at.

    Args:
        until: the texts.
        prompt: length of the prompt in tokens; None: what the first call has, less the one token it adds.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str], prompt: int | None = None) -> None:
        self.tokenizer, self.until, self.prompt = tokenizer, until, prompt

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """True where a row is done; ``(rows,)``."""
        if self.prompt is None:
            self.prompt = input_ids.shape[1] - 1
        rows = input_ids[:, self.prompt :].tolist()
        done = [_contains(_decoded(self.tokenizer, row), self.until) for row in rows]
        return torch.tensor(done, device=input_ids.device)


def _length(ids: Sequence[int], eos: Collection[int], pad: int | None) -> tuple[int, Stopped]:
    for place, token in enumerate(ids):
        if token in eos:
            return place + 1, "eos"
    tokens = len(ids)
    while tokens and ids[tokens - 1] == pad:
        tokens -= 1
    return tokens, "length"


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)


def _contains(text: str, until: Sequence[str]) -> bool:
    return any(stop in text for stop in until)
