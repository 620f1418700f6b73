"""What of a model runs in front of an engine: tower, projector, word embeddings and parts."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.utils import logging

from tokenflex import checkpoint, loadable, reading
from tokenflex.contracts import Decision
from tokenflex.errors import ConfigError
from tokenflex.hosts import stock
from tokenflex.model import FlexConfig, FlexModel, load_parts, stored
from tokenflex.model.exporting import Request
from tokenflex.model.request import Budgets, Level

LAYERS = ("layer_types", "layers_block_type", "mlp_layer_types", "attn_layers_types")
"""Entries of text configurations that have one value per layer of the language model."""


class Front:
    """Makes requests for an engine, without the language model's layers and its head.

    Args:
        flex: whose host has word embeddings but need not have the language model's layers.
        processor: the host's.
    """

    def __init__(self, flex: FlexModel, processor: Any = None) -> None:
        self.flex, self.processor = flex.eval(), processor

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        parts: str | os.PathLike[str] | None = None,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "cpu",
        positions: str | None = None,
    ) -> "Front":
        """Load a front; the weights of the language model's layers are neither read nor allocated.

        Args:
            model: what `FlexModel.save_pretrained` wrote; or a host, as its engine serves it, together with ``parts``.
            parts: what `FlexModel.save_parts` wrote. Not with a model that has parts of its own. They read the words
                that they were saved to read, as with `load_parts` without a processor.
            positions: for hosts with M-RoPE: ``"compact"``, the only ones that can travel, or ``"span"``.

        Raises:
            ConfigError: the folder holds no parts and none are given, or both; the files don't fit; or the language
                model's layers can't be left out of this host.
        """
        config = _config(model)
        own = isinstance(config, FlexConfig)
        if own == (parts is not None):
            raise ConfigError(
                f"{model} {'has parts of its own; leave parts out' if own else 'is a host without parts; give parts='}."
            )
        _without_layers(config.host if own else config, model)
        if own and positions is not None:
            config.parts = _placed(config.parts, positions)
        loaded = _load(FlexModel if own else AutoModelForImageTextToText, model, config, dtype)
        processor = AutoProcessor.from_pretrained(model) if _has_processor(model) else None
        if own:
            flex = loaded
        else:
            spec, _ = checkpoint.load(str(parts))
            options = spec.get("host", {}).get("options", {})
            adapter = checkpoint.adapter_for(
                loaded, options if positions is None else {**options, "positions": positions}
            )
            flex = load_parts(str(parts), host=loaded, adapter=adapter)
        flex.to(torch.device(device))
        _without_head(flex.host)
        return cls(flex, processor)

    def get_input_embeddings(self) -> nn.Module:
        """The language model's table of word embeddings."""
        return self.flex.get_input_embeddings()

    def export(self, *, level: Level = None, budget: Budgets = None, **inputs: Any) -> tuple[Request, ...]:
        """One request per row; see `FlexModel.export`."""
        return self.flex.export(level=level, budget=budget, **inputs)

    def decide(self, *, level: Level = None, budget: Budgets = None, **inputs: Any) -> list[Decision]:
        """What would be done with each image; see `FlexModel.decide`."""
        return self.flex.decide(level=level, budget=budget, **inputs)

    def require_engine(self, model: str | os.PathLike[str]) -> None:
        """Check that an engine's checkpoint is the one that this front's embeddings are made for.

        The names of tensors aren't looked at, since engines and versions of transformers name them differently.

        Args:
            model: the local folder that the engine serves.

        Raises:
            ConfigError: its embeddings are of another width, or a tensor of the front's projector isn't in it.
        """
        config = _config(model)
        host: Any = config.host if isinstance(config, FlexConfig) else config
        width = host.get_text_config().hidden_size
        if width != self.flex.adapter.dim:
            raise ConfigError(
                f"the engine's model {model} has embeddings of width {width}, the front's are {self.flex.adapter.dim} "
                "wide. Serve the model that the front was loaded from."
            )
        wanted = {
            name: parameter
            for name, parameter in stock.base_of(self.flex.host).named_parameters()
            if any(parameter is one for one in self.flex.adapter.parameter_groups()["projector"])
        }
        shapes = {tuple(parameter.shape) for parameter in wanted.values()}
        found = list(_tensors(Path(model), shapes))
        absent = [name for name, one in wanted.items() if not any(_same(one, other) for other in found)]
        if absent:
            raise ConfigError(
                f"the engine's model {model} doesn't hold this front's projector: {loadable.first(absent)}. Its "
                "language model would read embeddings of another projector. Serve the model that the front was loaded "
                "from, or load the front from the model that is served."
            )


def _config(model: str | os.PathLike[str]) -> Any:
    """A model's configuration; the files of a folder are looked at first.

    Raises:
        ConfigError: one of them is damaged.
    """
    if Path(model).is_dir():
        loadable.require_readable(Path(model))
    with loadable.in_our_words(model):
        return AutoConfig.from_pretrained(model)


def _without_layers(config: Any, model: Any) -> None:
    """Change a host's configuration to one whose language model has no layers.

    Raises:
        ConfigError: it doesn't say how many it has.
    """
    text = config.get_text_config()
    if not hasattr(text, "num_hidden_layers"):
        raise ConfigError(f"{model}: {type(text).__name__} has no num_hidden_layers, so its layers can't be left out.")
    for name in LAYERS:
        if getattr(text, name, None):
            setattr(text, name, [])
    text.num_hidden_layers = 0


def _load(kind: Any, model: Any, config: Any, dtype: Any) -> Any:
    """The model; the checkpoint's layers have no place in it, and whatever else hasn't is an error."""
    load = PreTrainedModel.from_pretrained.__func__ if kind is FlexModel else None  # pyright: ignore[reportAttributeAccessIssue]
    settings: dict[str, Any] = {"config": config, "dtype": dtype, "output_loading_info": True}
    with _quietly(), loadable.in_our_words(model):
        loaded, info = load(kind, model, **settings) if load else kind.from_pretrained(model, **settings)
    left = {name for name in info["unexpected_keys"] if ".layers." not in name and ".h." not in name}
    loadable.require_complete({**info, "unexpected_keys": left}, model)
    if kind is FlexModel:
        checkpoint.require_sound(loaded.compressor.state_dict(), str(model))
        digest = loaded.config.parts.pop(checkpoint.DIGEST, None)
        if Path(model).is_dir():
            stored.require_saved(digest, str(model))
    return loaded


@contextmanager
def _quietly() -> Iterator[None]:
    """Within, transformers doesn't list the tensors that have no place: they are meant not to."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _without_head(host: Any) -> None:
    """Free the matrix that predicts words; what asks for a prediction is told where words are predicted."""
    base = stock.base_of(host)
    if base.get_output_embeddings() is None:
        raise ConfigError(f"{type(base).__name__} doesn't say what predicts its words; load the whole model instead.")
    base.set_output_embeddings(_InTheEngine())


class _InTheEngine(nn.Module):
    """Stands in place of what predicts words."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refuse.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a Front has no language model, so it can't generate or score. Give the requests of Front.export to an "
            "engine, or load the whole model with AutoModelForImageTextToText.from_pretrained."
        )


def _placed(spec: Any, positions: str) -> Any:
    changed = copy.deepcopy(spec)
    changed["host"]["options"] = {**changed["host"]["options"], "positions": positions}
    return changed


def _has_processor(model: Any) -> bool:
    names = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
    return not Path(model).is_dir() or any((Path(model) / name).exists() for name in names)


def _tensors(folder: Path, shapes: set[tuple[int, ...]]) -> Iterator[Tensor]:
    """The tensors of a checkpoint that have one of these shapes."""
    for path in sorted(folder.glob("*.safetensors")):
        names = [name for name, entry in reading.tensor_names(path)[1].items() if entry.shape in shapes]
        with reading.safetensors_file(path) as file:
            yield from map(file.get_tensor, names)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one.detach().cpu() == other.to(one.dtype)).all())
