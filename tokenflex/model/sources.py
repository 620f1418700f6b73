"""A model and its processor from where they lie: one loader for every command, for training and for other tools."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tokenflex.checkpoint import holds_parts_only
from tokenflex.errors import ConfigError
from tokenflex.model.flex import FlexModel
from tokenflex.model.loading import fresh, load_parts, wrap

EXPECTED = "Give a folder or hub id with a model and its processor."


def load(
    model: str | None = None,
    *,
    host: str | None = None,
    parts: str | None = None,
    untrained: Mapping[str, Any] | None = None,
    processor: str | None = None,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    attn_implementation: str | None = None,
) -> tuple[FlexModel, Any]:
    """A saved `FlexModel`, or a host with trained parts, or a host alone with untrained ones; and its processor.

    Args:
        model: folder or hub id of a model that `FlexModel.save_pretrained` wrote, with its processor.
        host: folder or hub id of a plain host, instead of ``model``. Of a saved `FlexModel` its host is taken.
        parts: folder or hub id of parts for ``host``.
        untrained: instead of ``parts``, fresh ones by kind, as for `tokenflex.wrap`.
        processor: where the processor is, if it isn't beside the model.
        dtype: of the host: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: where everything goes; ``auto``: spread over all devices.
        attn_implementation: as for transformers; None: its default.

    Returns:
        The model, ready to answer, and the processor.

    Raises:
        ConfigError: not one of ``model`` and ``host`` was given, they have no parts or too many, or something can't be
            loaded.
    """
    source = model or host
    if source is None or (model and (host or parts or untrained)) or (parts and untrained):
        raise ConfigError("give either a saved FlexModel, or a host with or without parts.")
    if holds_parts_only(source):
        raise ConfigError(f"{source!r} holds parts only. Name their host too: --host NAME --parts {source}.")
    found = read_model(source, dtype=dtype, device=device, attn_implementation=attn_implementation)
    reads = read_processor(processor or source)
    if model and not isinstance(found, FlexModel):
        raise ConfigError(
            f"{model!r} is a plain {type(found).__name__} without parts. Give it as --host, with --parts for a trained "
            "router."
        )
    if host and isinstance(found, FlexModel):
        if not (parts or untrained):
            raise ConfigError(f"{host!r} has parts of its own. Give it as the model, or name other parts for its host.")
        found = found.host
    if parts:
        found = load_parts(parts, host=found)
    elif host:
        found = wrap(found, processor=reads, **untrained) if untrained else fresh(found, processor=reads)
    return found.eval(), reads


def read_model(
    source: str,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    attn_implementation: str | None = None,
) -> Any:
    """A `FlexModel` or a host.

    Args:
        source: its folder or hub id.
        dtype, device, attn_implementation: as for `load`.

    Raises:
        ConfigError: it can't be loaded.
    """
    settings: dict[str, Any] = {"dtype": dtype}
    if str(device) != "cpu":
        settings["device_map"] = device
    if attn_implementation is not None:
        settings["attn_implementation"] = attn_implementation
    try:
        return AutoModelForImageTextToText.from_pretrained(source, **settings)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{source!r} can't be loaded: {error} {EXPECTED}") from error


def read_processor(source: str) -> Any:
    """A host's processor.

    Raises:
        ConfigError: there is none.
    """
    try:
        return AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"the processor of {source!r} can't be loaded: {error} {EXPECTED}") from error
