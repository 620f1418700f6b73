"""Callbacks of ``generate`` count in the caller's prompt, although the host generates from a shorter one.

The library's own criteria and processors are copied with their lengths reduced, so that ``generate`` still recognises
their types; those of the caller are given the caller's ids.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

LENGTHS = (
    "max_length",
    "min_length",
    "begin_index",
    "prompt_length_to_skip",
    "prompt_ignore_length",
    "regulation_start",
)
"""Attributes of transformers' own criteria and processors that count from the prompt's first token."""


class _Full:
    """Puts the caller's prompt in place of the shortened one.

    Args:
        prompt: ``(rows, length)``, the caller's.
        shortened: ``(rows, new_length)``, the host's.
    """

    def __init__(self, prompt: Int[Tensor, "rows length"], shortened: Int[Tensor, "rows new_length"]) -> None:
        self.prompt, self.shortened, self.length = prompt, shortened, shortened.shape[1]

    def __call__(self, ids: Tensor) -> Tensor:
        """The ids as the caller counts them; beams of one row lie side by side."""
        front = self.prompt.to(ids.device).repeat_interleave(max(len(ids) // len(self.prompt), 1), dim=0)
        return torch.cat([front, ids[:, self.length :]], dim=1)

    def of_row(self, row: int, ids: Int[Tensor, " length"], copies: int) -> Int[Tensor, " full_length"]:
        """The same for one sequence of one row.

        Args:
            row: of the batch; before transformers 5.24, of the batch with ``copies`` of every row.
        """
        known = row < len(self.prompt) and torch.equal(self.shortened[row], ids[: self.length])
        return torch.cat([self.prompt[row if known else row // copies].to(ids.device), ids[self.length :]])


class _Criterion(StoppingCriteria):
    def __init__(self, inner: Callable[..., Any], full: _Full) -> None:
        self.inner, self.full = inner, full

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return self.inner(self.full(input_ids), scores, **kwargs)


class _Processor(LogitsProcessor):
    def __init__(self, inner: Callable[..., Any], full: _Full) -> None:
        self.inner, self.full = inner, full

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        return self.inner(self.full(input_ids), scores)


class _Streamer:
    """The first thing a streamer is given is the prompt."""

    def __init__(self, inner: Any, full: _Full) -> None:
        self.inner, self.full, self.begun = inner, full, False

    def put(self, value: Tensor) -> None:
        self.inner.put(value if self.begun else self.full.prompt.to(value.device))
        self.begun = True

    def end(self) -> None:
        self.inner.end()


def in_the_callers_prompt(
    options: Mapping[str, Any],
    prompt: Int[Tensor, "rows length"],
    shortened: Int[Tensor, "rows new_length"],
    config: Any,
) -> dict[str, Any]:
    """Options of ``generate`` whose callbacks see, and count in, the caller's prompt.

    Args:
        prompt: the caller's ids.
        shortened: the ids that the host is given.
        config: generation config in force where ``options`` say nothing.
    """
    out = dict(options)
    if shortened is prompt:
        return out
    full, dropped = _Full(prompt, shortened), prompt.shape[1] - shortened.shape[1]
    if out.get("stopping_criteria") is not None:
        criteria = [_counted(one, dropped) or _Criterion(one, full) for one in out["stopping_criteria"]]
        out["stopping_criteria"] = StoppingCriteriaList(criteria)
    if out.get("logits_processor") is not None:
        processors = [_counted(one, dropped) or _Processor(one, full) for one in out["logits_processor"]]
        out["logits_processor"] = LogitsProcessorList(processors)
    if out.get("prefix_allowed_tokens_fn") is not None:
        allowed, copies = out["prefix_allowed_tokens_fn"], _copies(out, config)
        out["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(row, full.of_row(row, ids, copies))
    if out.get("streamer") is not None:
        out["streamer"] = _Streamer(out["streamer"], full)
    return out


def _counted(callback: Any, dropped: int) -> Any:
    """A copy of one of transformers' own callbacks with shorter lengths; None for any other."""
    if not type(callback).__module__.startswith("transformers.generation."):
        return None
    made = copy.copy(callback)
    for name in LENGTHS:
        value = getattr(made, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            setattr(made, name, max(value - dropped, 0))
    return made


def _copies(options: Mapping[str, Any], config: Any) -> int:
    """Rows that ``generate`` makes of each row of the batch, beams aside."""

    def setting(name: str) -> int:
        own_config = options.get("generation_config")
        found = (options.get(name), getattr(own_config if own_config is not None else config, name, None))
        return next((int(value) for value in found if value is not None), 1)

    return 1 if setting("num_beams") > 1 else setting("num_return_sequences")
