"""Parts on disk: ``tokenflex.json`` says what they are, ``tokenflex.safetensors`` holds their weights.

Names and data only: no import paths, no pickles, nothing that could run.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenflex import catalog, compressor, registry
from tokenflex.compressor import Compressor
from tokenflex.contracts import Component, ComponentConfig, Grid, HostAdapter
from tokenflex.errors import ConfigError, UnknownComponentError, UnsupportedHostError

FORMAT = 1
JSON_NAME, WEIGHTS_NAME = "tokenflex.json", "tokenflex.safetensors"
OLDEST_TRANSFORMERS = "5.18"
KINDS = {
    "scaler": registry.scalers,
    "router": registry.routers,
    "voter": registry.voters,
    "policy": registry.policies,
}
Spec = dict[str, Any]


def adapter_for(host: nn.Module, options: Mapping[str, Any] | None = None) -> HostAdapter:
    """The registered adapter for a host.

    Args:
        options: settings of the adapter, as saved in a spec.

    Raises:
        UnsupportedHostError: transformers is too old, no adapter is registered for the host's
            ``model_type``, or the adapter declines.
    """
    model_type = getattr(getattr(host, "config", None), "model_type", None)
    needed = catalog.HOSTS_SINCE.get(str(model_type), OLDEST_TRANSFORMERS)
    if Version(transformers.__version__).release < Version(needed).release:
        raise UnsupportedHostError(
            f"transformers {transformers.__version__} is installed; hosts of type {model_type!r} are served from "
            f"{needed} on. Upgrade it: pip install 'transformers>={needed}'."
        )
    try:
        served = registry.hosts.get(str(model_type))
    except UnknownComponentError:
        known = catalog.REFUSED_HOSTS.get(str(model_type))
        reason = f": {known}" if known else ""
        raise UnsupportedHostError(
            f"no adapter serves {type(host).__name__} (model_type {model_type!r}){reason}. Supported: "
            f"{', '.join(registry.hosts.names())}. For your own model, subclass "
            "tokenflex.contracts.HostAdapter and pass wrap(host, adapter=MyAdapter(host))."
        ) from None
    reason = served.refusal(host)
    if reason:
        raise UnsupportedHostError(f"{served.__name__} can't serve this {type(host).__name__}: {reason}.")
    return served(host, **(options or {}))


class HostFacts(Protocol):
    """What of a host parts are made for: an adapter, or its facts alone."""

    @property
    def model_type(self) -> str:
        """See `HostAdapter.model_type`."""
        ...

    @property
    def dim(self) -> int:
        """See `HostAdapter.dim`."""
        ...

    @property
    def grid(self) -> Grid:
        """See `HostAdapter.grid`."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """See `HostAdapter.options`."""
        ...


def describe(parts: Compressor, adapter: HostFacts) -> Spec:
    """The JSON-ready description from which `assemble` builds the same parts.

    Raises:
        ConfigError: a part isn't registered, so its name couldn't be found again.
    """
    grid = adapter.grid
    return {
        "format": FORMAT,
        "host": {
            "model_type": adapter.model_type,
            "dim": adapter.dim,
            "grid": [grid.rows, grid.cols],
            "options": dict(adapter.options),
        },
        "parts": {kind: _describe_part(kind, getattr(parts, kind)) for kind in KINDS},
    }


def _describe_part(kind: str, part: Component) -> Spec:
    name = KINDS[kind].name_of(type(part))
    if name is None:
        raise ConfigError(
            f"{type(part).__name__} isn't registered as a {kind}, so a saved file couldn't name it. Register it: "
            f"an entry point in group {KINDS[kind].group!r}, or @tokenflex.{kind}s.register('a-name')."
        )
    provider = KINDS[kind].provider(name)
    return {
        "name": name,
        "provider": provider.distribution,
        "version": provider.version,
        "config": part.config.to_dict(),
    }


def assemble(spec: Spec, adapter: HostFacts) -> Compressor:
    """Build untrained parts from a description.

    Raises:
        ConfigError: unknown format, keys or host type; the message says what to install or mend.
    """
    _expect_keys(spec, {"format", "host", "parts"}, JSON_NAME)
    if spec["format"] != FORMAT:
        raise ConfigError(f"format {spec['format']!r} isn't known; this version reads {FORMAT}. Upgrade tokenflex.")
    _expect_keys(spec["host"], {"model_type", "dim", "grid", "options"}, f"{JSON_NAME}: host")
    _expect_keys(spec["parts"], set(KINDS), f"{JSON_NAME}: parts")
    grid = adapter.grid
    for key, actual in (
        ("model_type", adapter.model_type),
        ("dim", adapter.dim),
        ("grid", [grid.rows, grid.cols]),
    ):
        if spec["host"][key] != actual:
            raise ConfigError(
                f"these parts were made for a host with {key} {spec['host'][key]!r}, this host has {actual!r}. "
                "Load them onto the host they were trained with."
            )
    configs = {kind: _config(kind, part) for kind, part in spec["parts"].items()}
    return compressor.build(**configs, dim=adapter.dim, grid=grid)


def config_of(kind: str, part: str | ComponentConfig) -> ComponentConfig:
    """A part's config from its registered name (default settings) or as it is."""
    return part if isinstance(part, ComponentConfig) else KINDS[kind].get(part).Config()


def _config(kind: str, part: Spec) -> ComponentConfig:
    _expect_keys(part, {"name", "provider", "version", "config"}, f"{JSON_NAME}: {kind}")
    return config_from(kind, part)


def config_from(kind: str, part: Spec) -> ComponentConfig:
    """A part's config from its description.

    Raises:
        ConfigError: it isn't installed, or has other settings.
    """
    try:
        found = KINDS[kind].get(part["name"])
    except UnknownComponentError as error:
        raise ConfigError(
            f"the {kind} {part['name']!r} comes from {part['provider']} {part.get('version', '')}, which isn't "
            f"installed: pip install {part['provider']}. ({error})"
        ) from None
    return found.Config.from_dict(part["config"])


def _expect_keys(data: Mapping[str, Any], expected: set[str], where: str) -> None:
    if set(data) != expected:
        missing, unknown = sorted(expected - set(data)), sorted(set(data) - expected)
        raise ConfigError(
            f"{where}: missing key(s) {missing}, unknown key(s) {unknown}. "
            "The file was edited or written by another version of tokenflex."
        )


def save(folder: str | os.PathLike[str], spec: Spec, state: Mapping[str, Tensor]) -> None:
    """Write both files, each complete or not at all; the description last."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        weights, text = Path(scratch, WEIGHTS_NAME), Path(scratch, JSON_NAME)
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, weights)
        text.write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
        os.replace(weights, target / WEIGHTS_NAME)
        os.replace(text, target / JSON_NAME)


def load(folder: str | os.PathLike[str]) -> tuple[Spec, dict[str, Tensor]]:
    """Read both files from a folder or, where there is no such folder, from the model hub.

    Raises:
        ConfigError: a file is missing or isn't readable, or the weights hold NaN or infinity.
    """
    source = Path(folder)
    if not source.is_dir():
        source = _download(str(folder))
    try:
        spec = json.loads((source / JSON_NAME).read_text(encoding="utf-8"))
        state = load_file(source / WEIGHTS_NAME)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{source} has no {Path(error.filename or JSON_NAME).name}; save_parts() writes {JSON_NAME} and "
            f"{WEIGHTS_NAME} into one folder."
        ) from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source / JSON_NAME} isn't valid JSON: {error}.") from error
    require_sound(state, str(source / WEIGHTS_NAME))
    return spec, state


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
    """Whether all values are finite, whatever the type; 8-bit types know no isfinite and are widened."""
    return value.is_meta or bool(torch.isfinite(value.float() if value.element_size() == 1 else value).all())


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=[JSON_NAME, WEIGHTS_NAME]))
    except Exception as error:
        raise ConfigError(f"{repository!r} is no folder here and can't be fetched from the hub: {error}") from error
