"""Looking on while the host generates: how sure it is of every token, and which of them are the answer."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from tokenflex.contracts import Confidence
from tokenflex.errors import UnsupportedHostError
from tokenflex.hosts.grouped import Options

CRITERIA = ("max_time", "stop_strings", "stopping_criteria")
"""Options by which answers end that don't end with a token of their own; padding follows them, as in transformers."""


class AnswerWatch(LogitsProcessor):
    """Keeps one number per row and step. It has to be the last of the caller's processors, and changes nothing."""

    def __init__(self, measure: Confidence) -> None:
        self.measure = measure
        self._values: list[Tensor] = []
        self._scores: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Judge the token that was chosen last, and keep what the next one is chosen from."""
        self._judge(input_ids[:, -1])
        if not (self.measure.first_only and self._values):
            self._scores = scores.float()
        return scores

    def read(self, new: Int[Tensor, "rows steps"], mask: Bool[Tensor, "rows steps"]) -> Float[Tensor, " rows"]:
        """The confidence in each answer.

        Args:
            new: tokens that were generated.
            mask: of `answer_mask`.

        Raises:
            UnsupportedHostError: the host's ``generate`` showed nothing.
        """
        if self._scores is None and not self._values:
            raise UnsupportedHostError(
                "the host's generate() passes its scores to no logits_processor, so nobody sees how sure it is and its "
                "answers can't escalate. Choose levels with level= or a router."
            )
        if len(self._values) < new.shape[1]:
            self._judge(new[:, len(self._values)])
        steps = 1 if self.measure.first_only else new.shape[1]
        return self.measure.of_answer(torch.stack(self._values[:steps], dim=1), mask[:, :steps])

    def _judge(self, chosen: Tensor) -> None:
        if self._scores is not None:
            self._values.append(self.measure.of_tokens(self._scores, chosen.to(self._scores.device)))
            self._scores = None


class AfterOne(StoppingCriteria):
    """Every answer ends with its first token."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """True for every row: each stops after its first token."""
        return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)


def ends(settings: Options) -> list[int]:
    """Ids of the tokens that end an answer."""
    return _ids(settings("eos_token_id"))


def padding(settings: Options) -> int:
    """Id of the token behind answers that ended; where none is told the one that ends answers, as in transformers."""
    return (_ids(settings("pad_token_id")) or ends(settings) or [0])[0]


def answer_mask(new: Int[Tensor, "rows steps"], settings: Options) -> Bool[Tensor, "rows steps"]:
    """Which new tokens are the answer: up to the token that ends it, that one included; the first always."""
    last, pad = torch.tensor(ends(settings), device=new.device, dtype=new.dtype), padding(settings)
    over = torch.isin(new, last).long()
    mask = over.cumsum(-1) - over == 0
    if pad not in last.tolist() and any(settings(name) for name in CRITERIA):
        mask &= (new != pad).flip(-1).cumsum(-1).flip(-1) > 0
    mask[:, :1] = True
    return mask


def side_by_side(answers: Sequence[Int[Tensor, " steps"]], pad: int) -> Int[Tensor, "rows steps"]:
    """Answers of any length, padded on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(answers), batch_first=True, padding_value=pad)


def _ids(value: Any) -> list[int]:
    found = value.tolist() if isinstance(value, Tensor) else value
    return [] if found is None else [int(one) for one in found] if isinstance(found, list | tuple) else [int(found)]
