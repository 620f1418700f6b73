"""Putting parts onto a host that is already loaded."""

import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from tokenflex import checkpoint, compressor
from tokenflex.compressor import Compressor
from tokenflex.contracts import ComponentConfig, HostAdapter
from tokenflex.errors import ConfigError
from tokenflex.model.config import FlexConfig
from tokenflex.model.flex import FlexModel

Part = str | ComponentConfig


def wrap(
    host: nn.Module,
    *,
    scaler: Part = "average-pool",
    router: Part = "avg",
    voter: Part = "position-weighted",
    policy: Part = "argmax",
    adapter: HostAdapter | None = None,
    dtype: torch.dtype = torch.float32,
) -> FlexModel:
    """Give a host fresh, untrained parts.

    Args:
        host: a loaded model, e.g. from ``AutoModelForImageTextToText.from_pretrained``; it is not changed.
        scaler, router, voter, policy: a registered name, or a ``Config`` for other settings.
        adapter: for hosts no adapter is registered for, or for other settings of the adapter.
        dtype: of the parts' parameters; float32 keeps training sound next to a half-precision host.

    Raises:
        UnsupportedHostError: no adapter serves this host.
        UnknownComponentError: a name isn't registered.
    """
    adapter = adapter or checkpoint.adapter_for(host)
    chosen = {"scaler": scaler, "router": router, "voter": voter, "policy": policy}
    configs = {kind: checkpoint.config_of(kind, part) for kind, part in chosen.items()}
    parts = compressor.build(**configs, dim=adapter.dim, grid=adapter.grid)
    return _joined(host, parts.to(dtype), adapter)


def load_parts(folder: str | os.PathLike[str], *, host: nn.Module, adapter: HostAdapter | None = None) -> FlexModel:
    """Put parts that `FlexModel.save_parts` wrote onto a host.

    Args:
        folder: a local folder, or the id of a repository on the model hub.
        host: a loaded model of the type the parts were made for.

    Raises:
        ConfigError: the files don't fit this host, or name parts that aren't installed.
    """
    spec, state = checkpoint.load(folder)
    adapter = adapter or checkpoint.adapter_for(host, spec.get("host", {}).get("options"))
    parts = checkpoint.assemble(spec, adapter)
    checkpoint.fill(parts, state, str(folder))
    return _joined(host, parts, adapter)


def _joined(host: Any, parts: Compressor, adapter: HostAdapter) -> FlexModel:
    device = next(adapter.host.parameters()).device
    embeddings = getattr(host, "get_input_embeddings", None)
    if embeddings is not None:
        device = embeddings().weight.device
    known = getattr(host, "config", None)
    known = known if isinstance(known, PreTrainedConfig) else PreTrainedConfig()
    config = FlexConfig(host=known, parts=_describe(parts, adapter))
    flex = FlexModel(config, host=host, compressor=parts.to(device).train(host.training), adapter=adapter)
    flex.training = host.training  # the host's modules keep the modes they have
    return flex


def _describe(parts: Compressor, adapter: HostAdapter) -> checkpoint.Spec | None:
    """None while a part is unregistered: such a model runs and trains, and says so when it is saved."""
    try:
        return checkpoint.describe(parts, adapter)
    except ConfigError:
        return None
