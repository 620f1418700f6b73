"""The model to evaluate, and its processor."""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tokenflex.checkpoint import holds_parts_only
from tokenflex.errors import ConfigError
from tokenflex.model import FlexModel, load_parts
from tokenflex.model.loading import fresh


def load(
    model: str | None = None,
    *,
    host: str | None = None,
    parts: str | None = None,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
) -> tuple[FlexModel, Any]:
    """A saved `FlexModel`, or a host with trained parts, or a host alone with untrained ones; and its processor.

    Args:
        model: folder or hub id of a model that `FlexModel.save_pretrained` wrote, with its processor.
        host: folder or hub id of a plain host, instead of ``model``.
        parts: folder or hub id of parts for ``host``.
        dtype: of the host: ``auto``, ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ConfigError: not one of both was given, or it can't be loaded.
    """
    source = model or host
    if source is None or (model and (host or parts)):
        raise ConfigError("give either a saved FlexModel, or a host with or without parts.")
    if holds_parts_only(source):
        raise ConfigError(f"{source!r} holds parts only. Name their host too: --host NAME --parts {source}.")
    try:
        found: Any = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
        processor = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{source!r} can't be loaded: {error} Give a folder or hub id with a model and its processor."
        ) from error
    if model and not isinstance(found, FlexModel):
        raise ConfigError(
            f"{model!r} is a plain {type(found).__name__}. Give it as --host, with --parts for a trained router."
        )
    flex: Any = found
    if host:
        plain = found.host if isinstance(found, FlexModel) else found
        flex = load_parts(parts, host=plain) if parts else fresh(plain, processor=processor)
    return flex.to(device).eval(), processor
