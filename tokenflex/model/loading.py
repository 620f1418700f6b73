"""Putting parts onto a host that is already loaded."""

import functools
import logging
import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from tokenflex import checkpoint, compressor
from tokenflex.compressor import Compressor
from tokenflex.contracts import Component, ComponentConfig, HostAdapter
from tokenflex.errors import ConfigError
from tokenflex.hosts.turns import say_what_is_read, turn_markers
from tokenflex.model.config import FlexConfig
from tokenflex.model.escalation.settings import Escalate
from tokenflex.model.flex import FlexModel

logger = logging.getLogger(__name__)
Part = str | ComponentConfig | type[Component]
PARTS: dict[str, Part] = {
    "scaler": "average-pool", "router": "avg", "voter": "position-weighted", "policy": "argmax",
}  # fmt: skip
"""What `wrap` chooses where nothing is said: the published assembly."""


def wrap(
    host: nn.Module,
    *,
    scaler: Part = PARTS["scaler"],
    router: Part = PARTS["router"],
    voter: Part = PARTS["voter"],
    policy: Part = PARTS["policy"],
    adapter: HostAdapter | None = None,
    processor: Any = None,
    dtype: torch.dtype = torch.float32,
) -> FlexModel:
    """Give a host fresh, untrained parts.

    Says once, as a warning of this module's logger, that a router with weights has random ones.

    Args:
        host: a loaded model, e.g. from ``AutoModelForImageTextToText.from_pretrained``; it is not changed.
        scaler, router, voter, policy: a registered name, a class, or a ``Config`` for other settings.
        adapter: for hosts no adapter is registered for, or for other settings of the adapter.
        processor: the host's, from whose chat template the router learns where the user's last turn begins. Without it
            (and without a marker in ``adapter``) the router reads all text of the prompt, earlier turns too.
        dtype: of the parts' parameters; float32 keeps training sound next to a half-precision host.

    Raises:
        UnsupportedHostError: no adapter serves this host.
        UnknownComponentError: a name isn't registered.
        ConfigError: a part, the adapter, the processor or the dtype is none.
    """
    chosen = {"scaler": scaler, "router": router, "voter": voter, "policy": policy}
    flex = fresh(host, adapter=adapter, processor=processor, dtype=dtype, **chosen)
    parts = (flex.compressor.router, flex.compressor.voter)
    if any(parameter.requires_grad for part in parts for parameter in part.parameters()):
        _say_that_it_is_untrained()
    return flex


@functools.cache
def _say_that_it_is_untrained() -> None:
    logger.warning(
        "The router's weights are fresh and random, so the levels it chooses mean nothing yet. Train it "
        "(docs/training.md) or load a trained one with tokenflex.load_parts(); until then choose yourself, "
        "flex.generate(..., level=0), or use a router that needs no training: wrap(host, router='reconstruction')."
    )


def fresh(
    host: nn.Module,
    *,
    adapter: HostAdapter | None = None,
    processor: Any = None,
    dtype: torch.dtype = torch.float32,
    **parts: Part,
) -> FlexModel:
    """Do as `wrap`, for those who train the parts next or fill them: nothing is said of their weights."""
    _require(adapter, processor, dtype)
    adapter = told_turns(adapter or checkpoint.adapter_for(host), processor)
    configs = {kind: checkpoint.config_of(kind, part) for kind, part in {**PARTS, **parts}.items()}
    made = compressor.build(**configs, dim=adapter.dim, grid=adapter.grid)
    return _joined(host, made.to(dtype), adapter, processor)


def load_parts(
    folder: str | os.PathLike[str],
    *,
    host: nn.Module,
    policy: Part | None = None,
    adapter: HostAdapter | None = None,
    processor: Any = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> FlexModel:
    """Put parts that `FlexModel.save_parts` wrote onto a host.

    Args:
        folder: a local folder, or the id of a repository on the model hub.
        host: a loaded model of the type the parts were made for.
        policy: instead of the one that was saved: a registered name, or settings such as ``Budget(ratio=0.3)``.
        processor: as for `wrap`, for parts that were saved without knowing where turns begin.
        dtype: of the parts' parameters; None: float32.
        revision: branch, tag or commit of the repository.

    Raises:
        ConfigError: the files don't fit this host, or name parts that aren't installed; or the policy or dtype is none.
    """
    _require(adapter, processor, dtype)
    spec, state = checkpoint.load(folder, revision)
    adapter = told_turns(adapter or checkpoint.adapter_of(host, spec), processor)
    parts = checkpoint.assemble(spec, adapter)
    checkpoint.fill(parts, state, str(folder))
    flex = _joined(host, parts.to(dtype), adapter, processor)
    if policy is not None:
        flex.policy = policy
    saved = spec.get(checkpoint.ESCALATE)
    flex.escalate = None if saved is None else Escalate.from_dict(saved)
    if flex.escalate is not None:
        flex.escalate.ladder(parts.num_levels)
    return flex


def _require(adapter: Any, processor: Any, dtype: Any) -> None:
    if adapter is not None and not isinstance(adapter, HostAdapter):
        raise ConfigError(
            f"adapter={adapter!r:.200} ({type(adapter).__name__}) is no HostAdapter; leave it out for a host of "
            "transformers, or see docs/write_a_host.md."
        )
    if processor is not None and not hasattr(processor, "apply_chat_template"):
        raise ConfigError(
            f"processor={processor!r:.200} ({type(processor).__name__}) has no chat template; give the host's own: "
            "AutoProcessor.from_pretrained(...)."
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(f"dtype={dtype!r:.200} is no type for parameters; give torch.float32 or torch.bfloat16.")


def told_turns(adapter: HostAdapter, processor: Any) -> HostAdapter:
    """The adapter, told what opens a user's turn if it is to know and doesn't; as it is without a processor."""
    known: Any = adapter
    if processor is not None and getattr(known, "scope", None) == "last-turn" and known.marker == ():
        known.marker = turn_markers(processor)
        if not known.marker:
            logger.warning(
                "The chat template of %s doesn't show where a user's turn begins; the router reads all text of the "
                "prompt, earlier turns too. Give the adapter a marker: the ids of the text tokens that open a turn.",
                type(processor).__name__,
            )
    return adapter


def _joined(host: Any, parts: Compressor, adapter: HostAdapter, processor: Any) -> FlexModel:
    device = next(adapter.host.parameters()).device
    embeddings = getattr(host, "get_input_embeddings", None)
    if embeddings is not None:
        device = embeddings().weight.device
    known = getattr(host, "config", None)
    known = known if isinstance(known, PreTrainedConfig) else PreTrainedConfig()
    config = FlexConfig(host=known, parts=_describe(parts, adapter))
    flex = FlexModel(config, host=host, compressor=parts.to(device).train(host.training), adapter=adapter)
    flex.training = host.training  # the host's modules keep the modes they have
    if processor is None:
        say_what_is_read(adapter, parts.router)
    return flex


def _describe(parts: Compressor, adapter: HostAdapter) -> checkpoint.Spec | None:
    """The description of the parts; None while one is unregistered: such a model runs, and says so when it is saved."""
    try:
        return checkpoint.describe(parts, adapter)
    except ConfigError:
        return None
