"""Bytes: the peak of what is live during a run, and what a key-value cache holds."""

import gc
import weakref
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenflex.model.generation import CACHES
from tokenflex.profiling.timing import Call


@dataclass(frozen=True)
class Memory:
    """Bytes of one run.

    Attributes:
        peak: the most that was live at once, weights and batch included.
        held: live before the run: weights and batch.
        cache: keys and values in the cache that the run returned.
    """

    peak: int
    held: int
    cache: int

    @property
    def working(self) -> int:
        """The peak above what was held."""
        return self.peak - self.held

    def to_dict(self) -> dict[str, int]:
        """All four numbers, in bytes."""
        return {**asdict(self), "working": self.working}


def measured(run: Call, held: Iterable[Tensor], device: torch.device) -> tuple[Memory, Any]:
    """The memory of a run of ``generate``, and what it returned.

    On CUDA it is what torch's allocator had handed out at the peak; on the CPU the storages of live tensors, which is
    the same but for the scratch space inside kernels.

    Args:
        run: called once; slower than usual on the CPU, so it isn't timed.
        held: every tensor that is live before, on the CPU.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        output = run()
        torch.cuda.synchronize(device)
        return Memory(torch.cuda.max_memory_allocated(device), before, cache_bytes(output)), output
    known = list(held)
    before = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in known}.values())
    with LiveBytes(known) as live:
        output = run()
    return Memory(before + live.peak, before, cache_bytes(output)), output


def cache_bytes(output: Any) -> int:
    """Bytes of keys and values, summed over the layers of a returned cache; 0 without one."""
    cache = next((output[key] for key in CACHES[::-1] if output.get(key) is not None), None)
    layers = [] if cache is None else cache.layers
    tensors = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operators make while it is active, until they are freed.

    Attributes:
        live, peak: bytes made here and not yet freed: now, and at most.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in held:
            self._follow(tensor, 0)

    def _follow(self, tensor: Tensor, size: int | None = None) -> None:
        storage: Any = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if size is None else size
        self.live += self._sizes[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self._follow(leaf)
        return made
