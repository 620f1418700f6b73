"""Scaler, router and voter as one compiled graph: at batch 1 a GPU waits for launches, not for arithmetic."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tokenflex.compressor import Compressor, Stacked
from tokenflex.contracts import Instruction, VisualTokens


def compile_parts(parts: Compressor, *args: Any, **options: Any) -> None:
    """Compile what decides an image's level: `Compressor.forward`, in place, as ``nn.Module.compile`` does it.

    The numbers of images, views and text tokens are variables of the graph (one of anything is a graph of its own, as
    always in torch), grids are constants: every grid has its graph, up to torch's ``recompile_limit``, beyond which
    further grids run uncompiled. Nothing is compiled before the first call. Weights keep their names; copies and what
    is saved aren't compiled.

    Args:
        options: of ``torch.compile``, e.g. ``mode="reduce-overhead"``; ``disable=True`` undoes it.
    """
    if options.get("disable"):
        parts._compiled_call_impl = None
        return
    compiled = torch.compile(parts._call_impl, *args, **{"dynamic": False, **options})

    def call(stack: VisualTokens | Stacked, instruction: Instruction) -> Any:
        for tensor, axes in _stacked(stack, instruction):
            for axis in range(axes):
                torch._dynamo.maybe_mark_dynamic(tensor, axis)
        return compiled(stack, instruction)

    # Where nn.Module.compile keeps its call: state dict, copies and pickles leave it out.
    parts._compiled_call_impl = call


def _stacked(stack: VisualTokens | Stacked, instruction: Instruction) -> Iterator[tuple[Tensor, int]]:
    """Every tensor, and how many of its leading axes differ from request to request: images, and views or prompt."""
    said: list[Instruction | None] = [instruction]
    if isinstance(stack, Stacked):
        yield stack.readable, 1
        for level in stack.levels:
            yield level.features, 2
            yield level.assignment, 2
        seen = [stack.attention]
    else:
        said.append(stack.instruction)
        seen = [stack.features, *stack.planes, stack.attention, stack.keys]
    yield from ((tensor, 2) for tensor in seen if tensor is not None)
    for text in said:
        if text is not None:
            yield text.embeddings, 2
            yield text.mask, 2
