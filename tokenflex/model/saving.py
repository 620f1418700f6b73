"""Saving a host together with its parts so that it loads as it was, and quantised hosts."""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

from tokenflex import cards, checkpoint, loadable, reading
from tokenflex.errors import ConfigError
from tokenflex.files import as_path, locked, replaced, sweep, sweep_tensors, writing
from tokenflex.hosts import stock
from tokenflex.model import peft_hosts, stored

QUANTISED = ("bitsandbytes",)
"""Methods of quantisation that are known to come back as they were inside a larger model."""
APART = (
    "Save host and parts apart: flex.save_parts(folder) and flex.host.save_pretrained(another), to be put together "
    "again by tokenflex.load_parts(folder, host=...)."
)


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
    try:
        with torch.device("meta"):
            twin = type(flex)(copy.deepcopy(flex.config))
    except ConfigError as error:
        raise ConfigError(f"what would be saved couldn't be loaded again: {error} {APART}") from error
    loadable.require_same_as_built(flex, twin, state, APART)


def require_complete(flex: Any, info: Mapping[str, Any], where: Any) -> None:
    """Refuse a model that a file left incomplete, and make what no file holds.

    Args:
        info: what transformers says of loading.
        where: folder or repository, for the message.

    Raises:
        ConfigError: tensors are missing, have no place or another shape, or weights of the parts aren't finite.
    """
    loadable.require_complete(info, where)
    names = [name[0] if isinstance(name, tuple) else name for name in info.get("mismatched_keys", ())]
    mismatched = [name for name in names if name.startswith("compressor.")]
    if mismatched:
        raise ConfigError(f"{where}: tensors of the parts with another shape: {loadable.first(mismatched)}.")
    if flex.config.adapters is not None:
        peft_hosts.thaw(flex.host, flex.config.adapters)
    parts = flex.compressor
    unsaved = _unsaved(parts)
    if unsaved:
        fresh = dict(checkpoint.assemble(flex.config.parts, flex.adapter).named_buffers())
        for name, buffer in unsaved:
            buffer.copy_(fresh[name])
    checkpoint.require_sound(parts.state_dict(), str(where))
    flex.parts_made = True


def require_as_saved(flex: Any, entries: Mapping[str, reading.Entry], source: Any) -> None:
    """Refuse a model whose weights aren't what was saved, as far as that can be told.

    Args:
        entries: what the files' headers say, empty where they weren't looked at.
        source: folder or repository.

    Raises:
        ConfigError: weights aren't finite or of another kind of number, the parts' aren't those that were saved, or the
            parts' description has an ``escalate`` that isn't one.
        InputError: ``escalate`` names a level that the parts don't have.
    """
    digest = flex.config.parts.pop(checkpoint.DIGEST, None)
    if entries and quantizer_of(flex) is None:
        loadable.require_kinds(flex, entries, source)
    checkpoint.require_sound(dict(flex.named_parameters()), str(source))
    if entries and (Path(source) / "config.json").is_file():
        stored.require_saved(digest, str(source))
    if flex.escalate is not None:
        flex.escalate.ladder(flex.compressor.num_levels)


@contextmanager
def with_digest(flex: Any, state: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Within, the model's configuration tells the digest of the parts' weights.

    Args:
        state: the tensors that are saved; None: the model's own.
    """
    found = stored.digest(flex.state_dict() if state is None else state)
    described = flex.config.parts
    if found is not None:
        flex.config.parts = {**described, checkpoint.DIGEST: found}
    try:
        yield
    finally:
        flex.config.parts = described


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


@contextmanager
def place(save_directory: str | os.PathLike[str], first: bool, uploads: bool) -> Iterator[Path]:
    """The folder to save a model to: over one that is there, another one beside, whose files take its files' places.

    One saver at a time, but for processes that work together, as those may wait for each other while they save.

    Args:
        first: whether this process writes.
        uploads: the folder's name is needed as it is, and its files with it.

    Raises:
        WriteError: it can't be written.
    """
    folder = as_path(save_directory)
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    with writing(folder), nullcontext() if together or not first else locked(folder):
        if not first or uploads or folder.is_file():
            yield folder
            return
        for name in (".save", "config.json", cards.CARD_NAME, cards.CODE_NAME):
            sweep(folder, name)
        sweep_tensors(folder)
        with replaced(folder, "config.json", "model*.safetensors*", cards.CARD_NAME) as found:
            yield found


def refuse_parts(source: Any) -> None:
    """Refuse a folder of parts, which has no host.

    Raises:
        ConfigError: says how to load it.
    """
    if checkpoint.holds_parts_only(source):
        raise ConfigError(
            f"{source} holds parts only, as save_parts() writes them. Load the host, and put them onto it: "
            f"tokenflex.load_parts({str(source)!r}, host=host)."
        )


def explain(flex: Any, folder: str | os.PathLike[str]) -> None:
    """Put a card into a folder that was saved, and what tells transformers where the model's class is."""
    target = as_path(folder)
    parts, adapter = flex.compressor, flex.adapter
    spec = checkpoint.with_origin(checkpoint.describe(parts, adapter), adapter)
    cards.write_code(target, "tokenflex.model", "FlexConfig", "FlexModel")
    cards.write_card(target, cards.of_model(spec, parts.scaler.granularities(adapter.grid)))


def upload(folder: str, repository: str, options: Mapping[str, Any]) -> str:
    """Put a folder's files into a repository on the model hub.

    Args:
        options: of ``huggingface_hub.HfApi.upload_folder``, and ``private``.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: the hub refuses.
    """
    from huggingface_hub import HfApi

    arguments = dict(options)
    api, private = HfApi(token=arguments.pop("token", None)), arguments.pop("private", None)
    try:
        made = api.create_repo(repository, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=made, folder_path=folder, **arguments).commit_url)
    except Exception as error:  # of the network, the hub and what checks names
        raise ConfigError(f"{repository!r} can't be written on the hub: {error}") from error


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
