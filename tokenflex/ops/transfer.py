"""Copies from device to host, as few as possible: each one waits until the device has done all it was given."""

from collections.abc import Mapping

import torch
from torch import Tensor


def to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, without gradients; integers and booleans of one device come in a single copy.

    Args:
        tensors: of any shape; those on the CPU are given back as they are.
    """
    found = {name: tensor.detach() for name, tensor in tensors.items()}
    far = {name: tensor for name, tensor in found.items() if tensor.device.type != "cpu"}
    found |= {name: tensor.cpu() for name, tensor in far.items() if tensor.is_floating_point()}
    for device in dict.fromkeys(tensor.device for tensor in far.values()):
        whole = {n: tensor for n, tensor in far.items() if tensor.device == device and not tensor.is_floating_point()}
        if whole:
            flat = torch.cat([tensor.reshape(-1).long() for tensor in whole.values()]).cpu()
            pieces = flat.split([tensor.numel() for tensor in whole.values()])
            found |= {n: p.view(whole[n].shape).to(whole[n].dtype) for n, p in zip(whole, pieces, strict=True)}
    return found
