"""A host bit for bit: tensors, buffers and flags, to be compared before and after."""

import torch


def bits(tensor):
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).clone()


def snapshot(host):
    tensors = {
        **dict(host.named_parameters(remove_duplicate=False)),
        **dict(host.named_buffers(remove_duplicate=False)),
    }
    return {
        "tensors": {name: bits(tensor) for name, tensor in tensors.items()},
        "state dict": {n: bits(t) for n, t in host.state_dict().items() if isinstance(t, torch.Tensor)},
        "identities": {name: id(tensor) for name, tensor in tensors.items()},
        "requires_grad": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "types": {name: tensor.dtype for name, tensor in tensors.items()},
        "modes": {name: module.training for name, module in host.named_modules()},
        "marks": {name: sorted(module.__dict__) for name, module in host.named_modules()},
        "classes": {name: type(module) for name, module in host.named_modules()},
        "hooks": [[len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)] for m in host.modules()],
    }


def require_same(before, after, but=()):
    for kind, values in before.items():
        if kind in but:
            continue
        found = after[kind]
        assert list(values) == list(found) if isinstance(values, list) else values.keys() == found.keys(), kind
        if isinstance(values, dict):
            changed = [n for n, value in values.items() if not same(value, found[n])]
            assert not changed, f"{kind} of {changed[:5]} changed, {len(changed)} in all"


def same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
