"""What is saved loads again as it was: compared before anything is written, and counted when it is read.

A saved model is its configuration and its tensors. Whatever a configuration doesn't say (modules that were replaced, a
class of one's own, adapters) would come back as something else, without an error; whatever a file lacks, as
whatever the memory held.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tokenflex.errors import ConfigError

SHOWN = 4


def require_same_as_built(model: nn.Module, twin: nn.Module, state: Mapping[str, Tensor] | None, remedy: str) -> None:
    """Refuse a model that its configuration wouldn't build again.

    Args:
        twin: what its configuration builds, on any device.
        state: the tensors that will be saved; None: the model's own.
        remedy: the message's last sentence.

    Raises:
        ConfigError: names modules and tensors that would be lost or made up.
    """
    classes = {name: type(module).__name__ for name, module in twin.named_modules()}
    found = {name: type(module).__name__.removeprefix("FSDP") for name, module in model.named_modules()}
    other = [f"{name} ({found[name]}, not {made})" for name, made in classes.items() if found.get(name, made) != made]
    if other:
        raise ConfigError(
            "the model has modules that its configuration doesn't describe, so a loaded one would compute something "
            f"else: {first(other)}. {remedy}"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in (model.state_dict() if state is None else state).items()}
    problems = [f"{name} would be lost" for name in given if name not in shapes]
    problems += [f"{name} would be made up" for name in shapes if name not in given]
    problems += [
        f"{name} has the shape {given[name]}, its configuration says {shape}"
        for name, shape in shapes.items()
        if given.get(name, shape) != shape
    ]
    if problems:
        raise ConfigError(f"what would be saved couldn't be loaded as it is: {first(problems)}. {remedy}")


def require_complete(info: Mapping[str, Any], where: Any) -> None:
    """Refuse a model that a file left incomplete.

    Args:
        info: what transformers' ``from_pretrained`` says with ``output_loading_info=True``.
        where: folder or repository, for the message.

    Raises:
        ConfigError: tensors are missing or have no place.
    """
    problems = [f"{name} is missing" for name in sorted(info.get("missing_keys", ()))]
    problems += [f"{name} has no place" for name in sorted(info.get("unexpected_keys", ()))]
    if problems:
        raise ConfigError(
            f"{where} isn't complete: {first(problems)}. Such tensors would be made up or lost; save the model again, "
            "or download it again."
        )


def first(problems: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more
