"""Work: floating-point operations as torch counts them, and the attention kernels that did some of it."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenflex.profiling.timing import Call


@dataclass(frozen=True)
class Work:
    """What a run computes.

    Attributes:
        flops: of matrix products, convolutions and attention; an addition and a multiplication are two.
        attention: names of the fused attention kernels that ran, sorted; empty where attention is plain products.
    """

    flops: int
    attention: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready data."""
        return {**asdict(self), "attention": list(self.attention)}


def counted(run: Call) -> Work:
    """Count a run; slower than usual, so it isn't timed.

    Kernels that torch has no formula for count nothing: extensions such as flash-attn, and compiled parts.
    """
    with FlopCounterMode(display=False, custom_mapping=attention_formulas()) as counter:
        run()
    names = {str(op).removeprefix("aten.") for op in counter.get_flop_counts().get("Global", {})}
    return Work(counter.get_total_flops(), tuple(sorted(name for name in names if "attention" in name)))


def attention_formulas() -> dict[Any, Any]:
    """FLOPs of the attention kernels of CPUs, forward and backward, which torch may have no formula for."""

    def forward(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        batch, heads, length, width = query
        return 2 * batch * heads * length * key[-2] * (width + value[-1])

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        batch, heads, length, width = query
        return 2 * batch * heads * length * key[-2] * (3 * width + 2 * value[-1])

    names = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward")
    found = [getattr(torch.ops.aten, name, None) for name in names]
    return {op: formula for op, formula in zip(found, (forward, backward), strict=True) if op is not None}
