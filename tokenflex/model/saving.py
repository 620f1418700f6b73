"""What is saved loads again as it was: checked before anything is written.

A saved model is its configuration and its tensors. Whatever a configuration doesn't say (modules that were replaced, a
class of one's own, adapters, quantised layers) would come back as something else, without an error.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

from tokenflex import checkpoint
from tokenflex.errors import ConfigError
from tokenflex.hosts import stock
from tokenflex.model import peft_hosts

QUANTISED = ("bitsandbytes",)
"""Methods of quantisation that are known to come back as they were inside a larger model."""
APART = (
    "Save host and parts apart: flex.save_parts(folder) and flex.host.save_pretrained(another), to be put together "
    "again by tokenflex.load_parts(folder, host=...)."
)
SHOWN = 4


def require_loadable(flex: Any, state: Mapping[str, Tensor] | None) -> None:
    """Refuse a model that its configuration wouldn't build again.

    Args:
        flex: its ``config`` is what will be saved.
        state: the tensors that will be saved; None: the model's own.

    Raises:
        ConfigError: names modules and tensors that would be lost or made up.
    """
    host = stock.base_of(flex.host)
    if quantizer_of(flex) is not None or not _buildable(host):
        return
    with torch.device("meta"):
        twin = type(flex)(copy.deepcopy(flex.config))
    classes = {name: type(module).__name__ for name, module in twin.named_modules()}
    found = {name: type(module).__name__.removeprefix("FSDP") for name, module in flex.named_modules()}
    other = [f"{name} ({found[name]}, not {made})" for name, made in classes.items() if found.get(name, made) != made]
    if other:
        raise ConfigError(
            f"the host has modules that its configuration doesn't describe, so a loaded model would compute something "
            f"else: {_first(other)}. {APART}"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in (flex.state_dict() if state is None else state).items()}
    problems = [f"{name} would be lost" for name in given if name not in shapes]
    problems += [f"{name} would be made up" for name in shapes if name not in given]
    problems += [
        f"{name} has the shape {given[name]}, its configuration says {shape}"
        for name, shape in shapes.items()
        if given.get(name, shape) != shape
    ]
    if problems:
        raise ConfigError(f"what would be saved couldn't be loaded as it is: {_first(problems)}. {APART}")


def require_complete(flex: Any, info: Mapping[str, Any], where: Any) -> None:
    """Refuse a model that a file left incomplete, and make what no file holds.

    Args:
        info: what transformers says of loading.
        where: folder or repository, for the message.

    Raises:
        ConfigError: tensors are missing, have no place or another shape, or weights of the parts aren't finite.
    """
    missing, unexpected = sorted(info.get("missing_keys", ())), sorted(info.get("unexpected_keys", ()))
    mismatched = [name[0] if isinstance(name, tuple) else name for name in info.get("mismatched_keys", ())]
    problems = [f"{name} is missing" for name in missing]
    problems += [f"{name} has no place" for name in unexpected]
    problems += [f"{name} has another shape" for name in mismatched if name.startswith("compressor.")]
    if problems:
        raise ConfigError(
            f"{where} isn't complete: {_first(problems)}. Such tensors would be made up or lost; save the model again, "
            "or download it again."
        )
    if flex.config.adapters is not None:
        peft_hosts.thaw(flex.host, flex.config.adapters)
    parts = flex.compressor
    if _unsaved(parts):
        fresh = dict(checkpoint.assemble(flex.config.parts, flex.adapter).named_buffers())
        for name, buffer in _unsaved(parts):
            buffer.copy_(fresh[name])
    checkpoint.require_sound(parts.state_dict(), str(where))


def _unsaved(parts: nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers that aren't part of the state dict."""
    saved = set(parts.state_dict())
    return [(name, buffer) for name, buffer in parts.named_buffers() if name not in saved]


@contextmanager
def as_quantised(flex: Any) -> Iterator[None]:
    """Within, a model with a quantised host tells transformers so; otherwise nothing changes.

    Raises:
        ConfigError: as for `quantisation_config`.
    """
    settings, own = quantisation_config(flex), "hf_quantizer" in flex.__dict__
    if settings is None:
        yield
        return
    flex.config.quantization_config = settings
    if not own:
        flex.hf_quantizer = quantizer_of(flex)
    try:
        yield
    finally:
        if not own:
            del flex.hf_quantizer
            del flex.config.quantization_config


def require_castable(flex: Any) -> None:
    """Refuse another type for a quantised host.

    Raises:
        ConfigError: it is quantised.
    """
    if quantizer_of(flex) is not None:
        raise ConfigError(
            "the host is quantised, and casting would destroy its weights. Move it by device only, or cast the parts: "
            "flex.compressor.to(dtype)."
        )


def quantizer_of(flex: Any) -> Any:
    """transformers' quantiser of the host, or of the whole model; None where nothing is quantised."""
    own = getattr(flex, "hf_quantizer", None)
    return own if own is not None else getattr(stock.base_of(flex.host), "hf_quantizer", None)


def quantisation_config(flex: Any) -> Any:
    """The host's settings of quantisation as those of the whole model, parts left out; None without.

    Raises:
        ConfigError: the method can't be saved, or isn't known to come back inside a larger model.
    """
    quantizer = quantizer_of(flex)
    if quantizer is None:
        return None
    method = quantizer.quantization_config.quant_method
    name = str(getattr(method, "value", method))
    if not quantizer.is_serializable():
        raise ConfigError(
            f"the host is quantised with {name}, which transformers can't save. Save the parts alone: "
            "flex.save_parts(folder), and quantise the host again when you load it."
        )
    if not name.startswith(QUANTISED):
        raise ConfigError(f"the host is quantised with {name}; only {', '.join(QUANTISED)} is saved in one. {APART}")
    settings = copy.deepcopy(quantizer.quantization_config)
    kept = getattr(quantizer, "modules_to_not_convert", None) or []
    inner = kept if getattr(flex, "hf_quantizer", None) is not None else [*kept, *(f"host.{name}" for name in kept)]
    settings.llm_int8_skip_modules = sorted({*inner, "compressor"})
    return settings


def _buildable(host: Any) -> bool:
    """Whether loading would find the host's class by its configuration."""
    return isinstance(host, PreTrainedModel) and type(host.config) in AutoModelForImageTextToText._model_mapping


def _first(problems: list[str]) -> str:
    more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more
