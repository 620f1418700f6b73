"""Answers with ``FlexModel.generate`` in this process."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from tokenflex.model import FlexModel
from tokenflex.serving.server.asking import Ask, Sampling
from tokenflex.serving.server.batching import Batcher, Job
from tokenflex.serving.server.limits import Limits
from tokenflex.serving.server.protocol import Usage
from tokenflex.serving.server.reading import Reader, prompt_lengths
from tokenflex.serving.server.writing import Writing


class TransformersEngine:
    """Runs tower, parts and language model in one worker thread.

    Args:
        flex: on its device.
        processor: the host's.
        seen: called with the size of every batch.
    """

    name = "transformers"

    def __init__(
        self, flex: FlexModel, processor: Any, limits: Limits, seen: Callable[[int], None] = lambda rows: None
    ) -> None:
        self.flex, self.reader = flex.eval(), Reader(flex, processor)
        self.num_levels, self.placeholders = flex.compressor.num_levels, self.reader.placeholders
        self.batcher = Batcher(self._run, limits.batch, limits.wait, seen)

    async def serve(self) -> None:
        """Answer requests until it is cancelled."""
        await self.batcher.serve()

    async def refusal(self) -> str | None:
        """Why it can't answer at the moment; None where it can."""
        return None

    async def answer(self, ask: Ask) -> AsyncIterator[str | tuple[str, Usage]]:
        """Pieces of text, and at the end the reason why it ended, and what it took.

        Raises:
            RefusedError: it can't be answered.
        """
        pieces = self.batcher.pieces(ask)
        try:
            async for piece in pieces:
                yield piece
                if not isinstance(piece, str):
                    return
        finally:
            await pieces.aclose()  # pyright: ignore[reportAttributeAccessIssue]

    @torch.no_grad()
    def _run(self, jobs: Sequence[Job]) -> None:
        asks = [job.ask for job in jobs]
        inputs = self.reader.inputs(asks)
        choice = self.reader.within_context(inputs, asks, self.reader.choice(inputs, asks))
        writings = [self._writing(job) for job in jobs]
        with seeded(asks[0].sampling.seed, self.flex.device):
            output = self.flex.generate(
                **inputs,
                **choice,
                **settings(asks[0].sampling),
                stopping_criteria=StoppingCriteriaList([Rows(jobs, writings)]),
                return_dict_in_generate=True,
            )
        read = prompt_lengths(inputs, output)
        decided = self.reader.by_row(inputs, output.get("decisions") or (), len(jobs))
        for job, writing, prompt, decisions in zip(jobs, writings, read, decided, strict=True):
            if not writing.reason:
                writing.end("length")
            if not job.ask.stream:
                job.tell(writing.text)
            visual, full = sum(one.tokens for one in decisions), sum(one.of for one in decisions)
            levels = tuple(one.level for one in decisions)
            job.tell((writing.reason, Usage(prompt, len(writing.ids), visual, full, levels)))

    def _writing(self, job: Job) -> Writing:
        ends = getattr(self.flex.generation_config, "eos_token_id", None)
        ends = [] if ends is None else ends if isinstance(ends, list | tuple) else [ends]
        listener = job.tell if job.ask.stream else None
        return Writing(self.reader.decode, set(ends), job.ask.stop, job.ask.sampling.new_tokens, listener)


class Rows(StoppingCriteria):
    """Hands every row its tokens, and ends the rows that are through or that nobody waits for any more."""

    def __init__(self, jobs: Sequence[Job], writings: Sequence[Writing]) -> None:
        self.jobs, self.writings = jobs, writings

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """True for the rows that have ended."""
        tokens = input_ids[:, -1].tolist()
        ended = [
            writing.put(token) or job.gone for job, writing, token in zip(self.jobs, self.writings, tokens, strict=True)
        ]
        return torch.tensor(ended, device=input_ids.device)


def settings(sampling: Sampling) -> dict[str, Any]:
    """Options of ``generate``; without a temperature, the model's own decide how words are chosen."""
    options: dict[str, Any] = {"max_new_tokens": sampling.new_tokens, "num_beams": 1, "num_return_sequences": 1}
    if sampling.temperature is None:
        return options
    if sampling.temperature == 0:
        return options | {"do_sample": False}
    return options | {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
    }


@contextmanager
def _seeded(seed: int, device: torch.device) -> Any:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def seeded(seed: int | None, device: torch.device) -> Any:
    """Within, random numbers are those of the seed; None leaves them as they are."""
    return nullcontext() if seed is None else _seeded(seed, device)
