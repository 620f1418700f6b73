"""What is saved loads again as it was: compared before anything is written, and counted when it is read.

A saved model is its configuration and its tensors. Whatever a configuration doesn't say (modules that were replaced, a
class of one's own, adapters) would come back as something else, without an error; whatever a file lacks, as
whatever the memory held.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from tokenflex import reading
from tokenflex.errors import ConfigError, TokenFlexError

SHOWN = 4
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LAYERS = re.compile(r"^(?!max_).*(layers|depths?|blocks)$")
"""Settings of transformers that say how often something with weights is built; ``max_window_layers`` builds nothing."""
EXPERTS = re.compile(r"(num_experts|num_local_experts)$")
"""Settings that say how many experts a layer has, in tensors of their own or side by side in one."""
DROPOUT = re.compile(r"(dropout|drop_rate|dropout_rate|pdrop)$")
"""Settings that are probabilities."""
FEW = 64
"""Layers that are always allowed."""
CODE = frozenset({
    "_attn_implementation", "_attn_implementation_internal", "_experts_implementation",
    "_experts_implementation_internal", "attn_implementation", "auto_map", "experts_implementation",
})  # fmt: skip
"""Keys by which a configuration of transformers can name code or a repository of kernels; none says what a model is."""
TIMM = {"architecture": "model_args", "backbone": "backbone_kwargs"}
"""Where transformers' models of timm have timm's name of a model, and what is passed on with it."""
TIMM_LOADS = frozenset(
    {"cache_dir", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"}
)
"""Arguments of ``timm.create_model`` that say where weights come from."""


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
    own_shapes = {
        name: tuple(tensor.shape) for name, tensor in (model.state_dict() if state is None else state).items()
    }
    problems = [f"{name} would be lost" for name in own_shapes if name not in shapes]
    problems += [f"{name} would be made up" for name in shapes if name not in own_shapes]
    problems += [
        f"{name} has the shape {own_shapes[name]}, its configuration says {shape}"
        for name, shape in shapes.items()
        if own_shapes.get(name, shape) != shape
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


def fill(parts: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Put weights into parts.

    Args:
        where: the file or folder they come from, for the message.

    Raises:
        ConfigError: weights are missing, left over, or of another shape or kind of number.
    """
    require_fitting({name: (kind(value.dtype), tuple(value.shape)) for name, value in state.items()}, parts, where)
    parts.load_state_dict(state)


def require_fitting(found: Mapping[str, tuple[str, tuple[int, ...]]], parts: nn.Module, where: str) -> None:
    """Refuse weights that aren't those of a module, which may be on the ``meta`` device.

    Args:
        found: for each tensor its `kind` and shape.
        where: the file or folder they come from, for the message.

    Raises:
        ConfigError: weights are missing, left over, or of another shape or kind of number.
    """
    wanted = {name: (kind(value.dtype), tuple(value.shape)) for name, value in parts.state_dict().items()}
    both = sorted(wanted.keys() & found)
    wrong = [
        f"{name} {found[name][1]} instead of {wanted[name][1]}" for name in both if found[name][1] != wanted[name][1]
    ]
    kinds = [
        f"{name} {found[name][0] or 'of 8 bits or fewer'} instead of {wanted[name][0]}"
        for name in both
        if found[name][0] != wanted[name][0]
    ]
    if wrong or kinds or wanted.keys() != found.keys():
        raise ConfigError(
            f"{where}: weights and description disagree: missing tensors {sorted(wanted.keys() - found)}, unknown "
            f"tensors {sorted(found.keys() - wanted)}, wrong shapes {wrong}, wrong kinds of number {kinds}. Copy both "
            "files of one save."
        )


def kind(dtype: torch.dtype) -> str:
    """``float``, ``integer`` or ``boolean``, as `tokenflex.reading.Entry.kind`; empty for floats below 16 bits."""
    if dtype == torch.bool:
        return "boolean"
    if dtype.is_floating_point:
        return "float" if dtype.itemsize > 1 else ""
    return "" if dtype.is_complex else "integer"


def require_sound(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that hold NaN or infinity; integers, and tensors without data (``meta``), pass.

    Args:
        state: tensors by name.
        where: the file or folder they come from, for the message.

    Raises:
        ConfigError: names up to three such tensors, and how many more there are.
    """
    wrong = [name for name, value in state.items() if value.is_floating_point() and not _finite(value.detach())]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConfigError(
            f"{where}: NaN or infinite values in {', '.join(map(repr, wrong[:3]))}{more}. The weights are damaged, or "
            "their training diverged; load an earlier save, or download them again."
        )


def _finite(value: Tensor) -> bool:
    """Whether all values are finite, whatever the type; 8-bit types know no order and are widened."""
    value = getattr(value, "to_local", lambda: value)()  # of a tensor that is spread over processes
    if value.is_meta or not value.numel():
        return True
    lowest, highest = torch.aminmax(value.float() if value.element_size() == 1 else value)
    return bool(torch.isfinite(lowest) & torch.isfinite(highest))  # both are NaN where one value is


@contextmanager
def in_our_words(where: Any) -> Iterator[None]:
    """Within, what transformers raises for a damaged folder here becomes an error of ours.

    Of a repository on the model hub, errors of the network and of missing files stay as they are, and so do everywhere
    missing packages and memory that a graphics card lacks.

    Raises:
        ConfigError: the folder, what is wrong with it, and what to do.
    """
    folder = isinstance(where, str | os.PathLike) and Path(where).is_dir()
    try:
        yield
    except (TokenFlexError, ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and not folder:
            raise
        raise ConfigError(
            f"{where} can't be loaded: {type(error).__name__}: {error!s:.1000}. A file of it is damaged or of another "
            "kind, or an argument doesn't fit it; save the model again, or download it again."
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model that transformers saved into a folder; empty where it has none by those names.

    Raises:
        ConfigError: an index isn't one, names a file elsewhere or one that isn't there, or a link leads elsewhere.
    """
    if (folder / WEIGHTS).is_file():
        return [reading.own_file(folder, WEIGHTS)]
    if not (folder / INDEX).is_file():
        return []
    page = reading.own_file(folder, INDEX)
    index = reading.json_file(page)
    weight_map = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(weight_map, Mapping) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ConfigError(f"{page} doesn't say which file holds each tensor. Save the model again.")
    try:
        files = [reading.own_file(folder, file) for file in sorted(set(weight_map.values()))]
    except ConfigError as error:
        raise ConfigError(f"{page} isn't an index of shards: {error}") from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names. Save the model again.")
    return files


def first_look(source: Any, options: dict[str, Any], model_type: str) -> dict[str, reading.Entry]:
    """What a folder's weights are by their headers, its files looked at before anything is built; empty of others.

    Args:
        source: folder or repository.
        options: of ``from_pretrained``; files that could hold code aren't read unless it is asked for.
        model_type: that its configuration must name.

    Raises:
        ConfigError: as for `require_readable`.
    """
    if options.get("state_dict") is None:
        options.setdefault("use_safetensors", True)
    folder = Path(source, options.get("subfolder") or "") if isinstance(source, str | os.PathLike) else None
    return require_readable(folder, model_type) if folder is not None and folder.is_dir() else {}


def require_readable(folder: Path, model_type: str | None = None) -> dict[str, reading.Entry]:
    """What the weights of a saved model are by their headers; its settings are read, and held against that.

    Nothing is allocated for weights yet. Folders with weights under other names give nothing.

    Args:
        model_type: that ``config.json`` must name; None: any.

    Raises:
        ConfigError: it is a model of another type, a file can't be read, a tensor stands in two files, or the settings
            ask for more layers than the files have tensors.
    """
    settings = _settings(folder, "config.json")
    if model_type is not None and settings and settings.get("model_type") != model_type:
        raise ConfigError(
            f"{folder / 'config.json'}: model_type={settings.get('model_type')!r:.200}, expected {model_type!r}. Load "
            "it with AutoModelForImageTextToText.from_pretrained, which finds the model's own class."
        )
    _settings(folder, "generation_config.json")
    entries: dict[str, reading.Entry] = {}
    for file in weight_files(folder):
        found = reading.tensor_names(file)[1]
        twice = sorted(entries.keys() & found)
        if twice:
            raise ConfigError(
                f"{file}: tensors that other files of {folder} have as well: {first(twice)}. Save it again."
            )
        entries |= found
    if entries:
        widest = max((size for entry in entries.values() for size in entry.shape), default=0)
        require_sane(settings, max(len(entries), FEW), f"{folder / 'config.json'}", widest)
    return entries


def _settings(folder: Path, name: str) -> Mapping[str, Any]:
    """An object of a JSON file in the folder; empty where it has none."""
    if not (folder / name).exists():
        return {}
    path = reading.own_file(folder, name)
    found = reading.json_file(path, largest=reading.LARGEST_SETTINGS)
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path} holds {type(found).__name__}, expected an object with settings. Save it again.")
    return found


def require_sane(settings: Mapping[str, Any], most: int, where: str, widest: int = 0) -> None:
    """Refuse settings that no model with these tensors has, before they are built.

    Args:
        settings: of transformers, at any depth.
        most: tensors that there are; every layer has one.
        widest: the largest size that one of them has, which bounds the experts that lie side by side.

    Raises:
        ConfigError: more layers or experts than the tensors have room for, or a probability of dropping that isn't one.
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            require_sane(value, most, f"{where}: {key}", widest)
        counts = value if isinstance(value, list) else [value]
        if LAYERS.search(key) and any(type(one) is int and one > most for one in counts):
            raise ConfigError(f"{where}: {key}={value!r:.200}; there are {most} tensors or fewer. The file is damaged.")
        if EXPERTS.search(key) and type(value) is int and value > max(most, widest):
            raise ConfigError(
                f"{where}: {key}={value!r:.200}; the tensors have room for {max(most, widest)} or fewer. The file is "
                "damaged."
            )
        if DROPOUT.search(key) and isinstance(value, int | float) and not 0 <= value <= 1:
            raise ConfigError(f"{where}: {key}={value!r:.200}; expected a probability, from 0 to 1. Mend it.")


def require_kinds(model: nn.Module, entries: Mapping[str, reading.Entry], where: Any) -> None:
    """Refuse integers that were read where floats belong, and the other way round.

    Raises:
        ConfigError: names such tensors.
    """
    kinds = {name: kind(value.dtype) for name, value in model.state_dict().items()}
    wrong = [
        f"{name} is {entry.dtype}, expected {kinds[name]}"
        for name, entry in entries.items()
        if entry.kind and kinds.get(name, "") not in ("", entry.kind)
    ]
    if wrong:
        raise ConfigError(f"{where}: {first(wrong)}. The weights are damaged; save or download them again.")


def configuration(data: Any, where: str) -> PreTrainedConfig:
    """A configuration of transformers from a file's data.

    Args:
        where: the key that holds it, for the message.

    Raises:
        ConfigError: it names no ``model_type``, or transformers can't make one of it.
    """
    if not isinstance(data, dict) or not isinstance(data.get("model_type"), str):
        raise ConfigError(f"{where}={data!r:.200} doesn't say its model_type; the file is damaged.")
    try:
        return AutoConfig.for_model(**data)
    except TokenFlexError:
        raise
    except Exception as error:  # whatever transformers raises for settings that it wasn't made for
        raise ConfigError(f"{where} isn't a configuration: {type(error).__name__}: {error!s:.500}") from error


def without_code(data: Any) -> Any:
    """The data of a configuration of transformers without what names code or kernels, at any depth.

    Raises:
        ConfigError: it names weights elsewhere, through a model of timm.
    """
    if isinstance(data, list | tuple):
        return [without_code(item) for item in data]
    if not isinstance(data, Mapping):
        return data
    if str(data.get("model_type")).startswith("timm"):
        _require_own_model(data)
    return {key: without_code(value) for key, value in data.items() if key not in CODE}


def _require_own_model(data: Mapping[str, Any]) -> None:
    for name, option in TIMM.items():
        options = data.get(option) or {}
        loads = sorted(TIMM_LOADS.intersection(options)) if isinstance(options, Mapping) else options
        if loads or not re.fullmatch(r"[\w.-]*", str(data.get(name) or "")):
            raise ConfigError(
                f"config.json: {data['model_type']!r} with {name}={data.get(name)!r} and {option} {loads!r} names "
                "weights elsewhere than in its folder. Get the file from someone you trust."
            )
