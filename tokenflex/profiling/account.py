"""What a setting comes to besides time: answers, decisions, memory and work; and whether the comparison is fair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenflex.contracts import Decision, HostInputs
from tokenflex.model import FlexModel
from tokenflex.profiling import flops, memory
from tokenflex.profiling.flops import Work
from tokenflex.profiling.memory import Memory
from tokenflex.profiling.plan import MeasuredSetting
from tokenflex.profiling.stages import answering
from tokenflex.profiling.timing import Call


@dataclass(frozen=True)
class Account:
    """One setting on one batch.

    Attributes:
        decisions: one per image; none for the vanilla host.
        prompt_length: that the language model sees, padding included.
        answers: by length, the memory and work of one call.
        ids: ``(rows, new)``, the longest answer.
    """

    decisions: tuple[Decision, ...]
    prompt_length: int
    answers: Mapping[int, tuple[Memory, Work]]
    ids: Tensor


def account(
    flex: FlexModel, inputs: HostInputs, setting: MeasuredSetting, lengths: Sequence[int], tick: Call
) -> Account:
    """Run every answer length for memory, and again for work; neither is timed.

    That all settings are asked the same and write equally much is asserted. One call goes before, so that what is
    loaded on the way isn't counted.

    Args:
        tick: called after every length.
    """
    held = [*flex.parameters(), *flex.buffers(), *(value for value in inputs.values() if isinstance(value, Tensor))]
    prompt, answers = inputs["input_ids"], {}
    output = answering(flex, inputs, setting, 1)()
    for new_tokens in lengths:
        output = None
        run = answering(flex, inputs, setting, new_tokens)
        used, output = memory.measured(run, held, flex.device)
        answers[new_tokens] = used, flops.counted(run)
        ids = output["sequences"]
        assert ids.shape[1] == prompt.shape[1] + new_tokens, f"{setting.name}: {tuple(ids.shape)} ids in all"
        assert torch.equal(ids[:, : prompt.shape[1]], prompt), f"{setting.name}: another prompt"
        tick()
    seen = output.get("compact_sequences", output["sequences"])
    return Account(
        decisions=tuple(output.get("decisions", ())),
        prompt_length=seen.shape[1] - lengths[-1],
        answers=answers,
        ids=output["sequences"][:, prompt.shape[1] :],
    )
