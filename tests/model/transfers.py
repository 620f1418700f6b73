"""Counts what code of this library reads back from a device, on a machine that has none.

Within `Transfers` every tensor counts as one of a GPU, unless it was made from numbers or copied to the CPU. Reading
such a tensor's values, or anything whose shape depends on them, is a copy that a GPU would have to finish its work for.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

LIBRARY = str(Path(__import__("tokenflex").__file__).parent)
READS = {"cpu", "tolist", "item", "__bool__", "__int__", "__float__", "__index__", "nonzero", "argwhere", "unique",
         "masked_select", "bincount", "unique_consecutive", "equal", "allclose"}  # fmt: skip
MAKES = {"tensor", "arange", "zeros", "ones", "full", "empty", "as_tensor"}
DEVICE = torch.device("cuda", 0)
HERE = "_on_cpu"


class Transfers(TorchFunctionMode):
    """``found``: (function, file:line) of every copy that code of this library asks for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __enter__(self):
        self.plain = torch.from_numpy  # which no mode sees
        torch.from_numpy = lambda array: marked(self.plain(array), True)
        return super().__enter__()

    def __exit__(self, *error):
        torch.from_numpy = self.plain
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        place = caller()
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        far = [tensor for tensor in tensors if not getattr(tensor, HERE, False)]
        if name == "__get__" and getattr(func, "__self__", None) is Tensor.device and place:
            return DEVICE if far else torch.device("cpu")
        if name == "numpy" and far and place:
            raise AssertionError(f"numpy() of a tensor on the device, {place}")
        wanted = kwargs.get("device")
        if wanted == DEVICE:
            kwargs["device"] = torch.device("cpu")
        if name == "to" and any(arg == DEVICE for arg in args):
            wanted = DEVICE
        args = tree_map(lambda leaf: torch.device("cpu") if leaf == DEVICE else leaf, args)
        picks = name == "__getitem__" and any(t.dtype == torch.bool and t.dim() for t in tensors[1:])
        if far and place and (name in READS or picks):
            self.found.append((name, place))
        result = func(*args, **kwargs)
        if name == "cpu" or (name == "to" and wanted is None and any(str(arg) == "cpu" for arg in args)):
            return marked(result.clone(), place is not None)
        moved = name == "to" and wanted == DEVICE
        here = not moved and wanted != DEVICE and (not far if tensors else name in MAKES)
        return marked(result.clone() if moved and isinstance(result, Tensor) else result, here)


def marked(result, here):
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor) and here:
            setattr(leaf, HERE, True)
    return result


def caller():
    """The line that called torch, if it is one of this library's."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/" not in file and "/jaxtyping/" not in file and "beartype" not in file and file != __file__:
            return f"{Path(file).name}:{frame.f_lineno}" if file.startswith(LIBRARY) else None
        frame = frame.f_back
    return None
