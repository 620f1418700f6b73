"""Digests by which it can be told whether tensors are those of another day."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def of_tensors(state: Mapping[str, Tensor]) -> str:
    """Digest of names, types, shapes and bytes; of tensors without data (``meta``) all but the bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            digest.update(tensor.to("cpu").contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
