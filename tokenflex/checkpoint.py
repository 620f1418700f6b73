"""Parts on disk: ``tokenflex.json`` says what they are, ``tokenflex.safetensors`` holds their weights.

Names and data only: no import paths, no pickles, nothing that could run.

The two files are replaced one after the other, and still nobody reads halves of two saves: ``tokenflex.json`` has the
digest of the weights it belongs to, and the weights carry their own description along, which counts while the other
file is of another save. In it is a digest of itself and of all tensors, so that damage to either file is seen. A
description may be edited by hand once its key ``weights`` is removed. Files of versions that did without these are read
as they are. Loading takes at most twice the memory of the weights' file, and a bit more.
"""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenflex import cards, compressor, loadable, reading, registry
from tokenflex.compressor import Compressor
from tokenflex.contracts import Component, ComponentConfig, Grid, HostAdapter
from tokenflex.errors import ConfigError, TokenFlexError, UnknownComponentError
from tokenflex.files import as_path, bare_name, locked, sweep, whole, write_whole, writing
from tokenflex.hosts.choosing import SANE
from tokenflex.hosts.choosing import adapter_for as adapter_for
from tokenflex.loadable import fill as fill
from tokenflex.loadable import require_sound as require_sound
from tokenflex.ops.digest import of_tensors

FORMAT = 1
JSON_NAME, WEIGHTS_NAME = "tokenflex.json", "tokenflex.safetensors"
DIGEST, DESCRIPTION, SEAL = "weights", "description", "seal"
"""Key of ``tokenflex.json`` with the digest of the weights' file; key of the weights' metadata with the description;
key of that with a digest of itself and of the tensors."""
LARGEST_DIM, LARGEST_SIDE = 2**20, 2**12
"""Width of a language model, and rows or columns of a grid of visual tokens, that a file may name."""
ESCALATE = "escalate"
"""Key of a description, left out where it isn't known, with how answers may escalate."""
KINDS = {
    "scaler": registry.scalers,
    "router": registry.routers,
    "voter": registry.voters,
    "policy": registry.policies,
}
DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
"""A distribution's name, as packages are published under."""
Spec = dict[str, Any]


def adapter_of(host: nn.Module, spec: Spec) -> HostAdapter:
    """The registered adapter for a host, as parts were described with it.

    Raises:
        UnsupportedHostError, ConfigError: as for `adapter_for`, or the parts are for another type of host.
    """
    described = spec.get("host") if isinstance(spec, Mapping) else None
    options = described.get("options") if isinstance(described, Mapping) else None
    made_for = described.get("model_type") if isinstance(described, Mapping) else None
    actual = getattr(getattr(host, "config", None), "model_type", None)
    if isinstance(made_for, str) and isinstance(actual, str) and made_for != actual != "tokenflex":
        raise ConfigError(_other_host("model_type", made_for, actual))
    return adapter_for(host, options)


def _other_host(key: str, made_for: Any, actual: Any) -> str:
    return (
        f"these parts were made for a host with {key} {made_for!r}, this host has {actual!r}. Load them onto the host "
        "they were trained with."
    )


class HostDescription(Protocol):
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


def describe(parts: Compressor, adapter: HostDescription) -> Spec:
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
            f"an entry point in group {KINDS[kind].group!r}, or @{KINDS[kind].group}.register('a-name')."
        )
    provider = KINDS[kind].provider(name)
    return {
        "name": name,
        "provider": provider.distribution,
        "version": provider.version,
        "config": part.config.to_dict(),
    }


def assemble(spec: Spec, adapter: HostDescription) -> Compressor:
    """Build untrained parts from a description.

    Raises:
        ConfigError: unknown format, keys or host type; the message says what to install or mend.
    """
    check_shape(spec)
    grid = adapter.grid
    for key, actual in (
        ("model_type", adapter.model_type),
        ("dim", adapter.dim),
        ("grid", [grid.rows, grid.cols]),
    ):
        if spec["host"][key] != actual:
            raise ConfigError(_other_host(key, spec["host"][key], actual))
    configs = {kind: config_from(kind, part) for kind, part in spec["parts"].items()}
    try:
        return compressor.build(**configs, dim=adapter.dim, grid=grid)
    except TokenFlexError:
        raise
    except SANE as error:
        settings = {kind: f"{spec['parts'][kind]['name']} {config.to_dict()}" for kind, config in configs.items()}
        raise ConfigError(
            f"{JSON_NAME}: the parts {settings!r:.800} can't be built: {type(error).__name__}: {error}. Mend "
            "the setting."
        ) from error


def check_shape(spec: Any) -> None:
    """Refuse what isn't a description of parts: keys, types and sizes; settings of parts are theirs to check.

    Raises:
        ConfigError: names key and value.
    """
    further = {ESCALATE, DIGEST}.intersection(spec) if isinstance(spec, Mapping) else set()
    _expect_keys(spec, {"format", "host", "parts"} | further, JSON_NAME)
    if type(spec["format"]) is not int or spec["format"] != FORMAT:
        raise ConfigError(
            f"format {spec['format']!r:.200} isn't known; this version reads {FORMAT}. Upgrade tokenflex."
        )
    _check_host(spec["host"])
    _expect_keys(spec["parts"], set(KINDS), f"{JSON_NAME}: parts")
    for kind, part in spec["parts"].items():
        _expect_keys(part, {"name", "provider", "version", "config"}, f"{JSON_NAME}: {kind}")
        for key in ("provider", "version"):
            if not isinstance(part[key], str):
                raise ConfigError(f"{JSON_NAME}: {kind}: {key}={part[key]!r:.200} isn't a text; the file is damaged.")


def _check_host(host: Any) -> None:
    where = f"{JSON_NAME}: host"
    origin = {"name", "revision"}.intersection(host) if isinstance(host, Mapping) else set()
    _expect_keys(host, {"model_type", "dim", "grid", "options"} | origin, where)
    for key in ("model_type", *sorted(origin)):
        if not isinstance(host[key], str):
            raise ConfigError(f"{where}: {key}={host[key]!r:.200} isn't a text; the file is damaged.")
    try:
        bare_name(host["model_type"])
    except ValueError as error:
        raise ConfigError(f"{where}: model_type: {error}. Name a type of transformers' models.") from None
    grid = host["grid"]
    sides = grid if isinstance(grid, list | tuple) and len(grid) == 2 else [None]
    if not all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in sides):
        raise ConfigError(f"{where}: grid={grid!r:.200}; expected rows and columns, each 1 to {LARGEST_SIDE}.")
    if type(host["dim"]) is not int or not 1 <= host["dim"] <= LARGEST_DIM:
        raise ConfigError(f"{where}: dim={host['dim']!r:.200}; expected an integer from 1 to {LARGEST_DIM}.")
    if not isinstance(host["options"], Mapping):
        raise ConfigError(f"{where}: options={host['options']!r:.200} isn't an object; the file is damaged.")


@dataclass(frozen=True)
class _Described:
    """The facts of a host as a file tells them."""

    model_type: str
    dim: int
    grid: Grid
    options: Mapping[str, Any]


def promised(spec: Spec) -> Compressor:
    """The parts of a description on the ``meta`` device: their tensors are known before there is memory for them.

    Raises:
        ConfigError: as for `assemble`.
    """
    check_shape(spec)
    host = spec["host"]
    with torch.device("meta"):
        return assemble(spec, _Described(host["model_type"], host["dim"], Grid(*host["grid"]), host["options"]))


def config_of(kind: str, part: str | ComponentConfig | type[Component]) -> ComponentConfig:
    """A part's config from its registered name or its class, with default settings; or as it is.

    Raises:
        UnknownComponentError: no part of this kind has that name.
        ConfigError: it is something else, or of another kind.
    """
    found: Any = part
    if isinstance(part, str):
        return KINDS[kind].get(part).Config()
    if inspect.isclass(part) and issubclass(part, Component):
        found = part.Config()
    owner = getattr(type(found), "owner", None)
    if isinstance(found, ComponentConfig) and owner is not None and issubclass(owner, KINDS[kind].base):
        return found
    hint = f"; pass its settings, {type(part).__name__}.Config(...)" if isinstance(part, Component) else ""
    raise ConfigError(
        f"{kind}={part!r:.200} ({type(part).__name__}) is no {kind}: expected a registered name (there are "
        f"{', '.join(KINDS[kind].names())}), a class of {KINDS[kind].base.__name__}, or its Config{hint}."
    )


def described(kind: str, config: ComponentConfig) -> str:
    """A part for people: its registered name and its settings."""
    return f"{KINDS[kind].name_of(config.owner)!r} {config.to_dict()}"


def config_from(kind: str, part: Spec) -> ComponentConfig:
    """A part's config from its description.

    Raises:
        ConfigError: it isn't installed, or has other settings.
    """
    name = part.get("name") if isinstance(part, Mapping) else None
    if not isinstance(name, str) or not isinstance(part.get("config"), Mapping):
        raise ConfigError(f"the {kind} {part!r} isn't described by a name and its settings; the file is damaged.")
    try:
        found = KINDS[kind].get(name)
    except UnknownComponentError as error:
        raise ConfigError(f"the {kind} {name!r} isn't installed. {_origin(part)} ({error})") from None
    try:
        return found.Config.from_dict(part["config"])
    except TokenFlexError:
        raise
    except SANE as error:
        raise ConfigError(
            f"the {kind} {name!r} can't have the settings {part['config']!r:.500}: {type(error).__name__}: {error}. "
            "Mend them, or save the parts again."
        ) from error


def _origin(part: Mapping[str, Any]) -> str:
    """Where a file says a part comes from; a command to install it only if that is the name of a distribution."""
    provider, version = part.get("provider"), part.get("version")
    if provider == registry.NOTEBOOK:
        return "It was registered in a notebook or script; register it again before loading."
    if not isinstance(provider, str) or not DISTRIBUTION.fullmatch(provider):
        return f"The file doesn't name the distribution that it comes from (it says {provider!r})."
    return (
        f"The file says that it comes from {provider} (version {version!r}); if you know and trust that "
        f"distribution: pip install {provider}."
    )


def _expect_keys(data: Any, expected: set[str], where: str) -> None:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: {data!r} isn't an object with keys {sorted(expected)}; the file is damaged.")
    if set(data) != expected:
        missing, unknown = sorted(expected - set(data)), sorted(set(data) - expected)
        raise ConfigError(
            f"{where}: missing key(s) {missing}, unknown key(s) {unknown}. "
            "The file was edited or written by another version of tokenflex."
        )


def save(folder: str | os.PathLike[str], spec: Spec, state: Mapping[str, Tensor]) -> None:
    """Write both files, each complete or not at all; the description last. Savers into one folder take turns."""
    target = as_path(folder)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with locked(target):
        for name in (WEIGHTS_NAME, JSON_NAME):
            sweep(target, name)
        with whole(target / WEIGHTS_NAME) as scratch:
            save_file(tensors, scratch, metadata={DESCRIPTION: json.dumps({**spec, SEAL: _seal(spec, tensors)})})
            with scratch.open("rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
        write_whole(target / JSON_NAME, json.dumps({**spec, DIGEST: f"sha256:{digest}"}, indent=2) + "\n")


def save_parts(
    folder: str | os.PathLike[str],
    parts: Compressor,
    host: HostDescription,
    state: Mapping[str, Tensor] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write parts, described with where their host came from, and a card for people.

    Args:
        state: the parts' weights; None: as they are.
        more: further entries of the description.

    Raises:
        ConfigError: a part isn't registered under a name.
    """
    spec = with_origin({**describe(parts, host), **(more or {})}, host)
    target = as_path(folder)
    with locked(target):
        save(target, spec, parts.state_dict() if state is None else state)
        if not (target / "config.json").is_file():  # beside a whole model, whose card says more
            sweep(target, cards.CARD_NAME)
            cards.write_card(target, cards.of_parts(spec, parts.scaler.granularities(host.grid)))


def with_origin(spec: Spec, host: HostDescription) -> Spec:
    """The description with the name and revision of the host's repository, where they are known."""
    config = getattr(getattr(host, "host", None), "config", None)
    return {**spec, "host": {**spec["host"], **cards.origin(config)}}


def load(folder: str | os.PathLike[str], revision: str | None = None) -> tuple[Spec, dict[str, Tensor]]:
    """Read both files, of one and the same save, from a folder or, where there is no such folder, from the model hub.

    Args:
        revision: branch, tag or commit of a repository; folders have none.

    Raises:
        ConfigError: a file is missing or isn't readable, the two belong to different saves, or the weights hold NaN
            or infinity.
    """
    source = as_path(folder)
    if not source.is_dir():
        source = _download(str(folder), revision)
    elif revision is not None:
        raise ConfigError(
            f"revision={revision!r} goes with a repository on the hub; {source} is a folder. Leave it out."
        )
    missing = [name for name in (JSON_NAME, WEIGHTS_NAME) if not (source / name).is_file()]
    page, weights = reading.own_file(source, JSON_NAME), reading.own_file(source, WEIGHTS_NAME)
    if missing:
        raise ConfigError(_not_parts(source, missing[0]))
    spec = reading.json_file(page, largest=reading.LARGEST_SETTINGS)
    check_shape(spec)
    digest = spec.pop(DIGEST, None)
    if digest is not None and not (isinstance(digest, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", digest)):
        raise ConfigError(f"{page}: {DIGEST}={digest!r:.200} isn't 'sha256:' and 64 digits; the file is damaged.")

    def accept(metadata: dict[str, str], entries: dict[str, reading.Entry]) -> None:
        carried = None if digest is None else _carried(weights, metadata)[0]
        found = {name: (entry.kind, entry.shape) for name, entry in entries.items()}
        loadable.require_fitting(found, promised(carried or spec), str(source))

    metadata, state, found = reading.tensors_once(weights, accept)
    carried, seal = _carried(weights, metadata)
    if seal is not None and seal != _seal(carried, state):
        raise ConfigError(
            f"{weights} doesn't hold what was saved: its tensors or their description were changed. Copy the file "
            "again; if you changed it on purpose, write the tensors without metadata, and remove the key "
            f"{DIGEST!r} from {JSON_NAME}."
        )
    require_sound(state, str(weights))
    return _counting(page, spec, carried, digest in (None, f"sha256:{found}"), edited=digest is None, seal=seal), state


def _counting(page: Path, spec: Spec, carried: Any, same: bool, *, edited: bool, seal: str | None) -> Spec:
    """What describes the weights: ``tokenflex.json``, or what they carry along if that is of another save.

    Args:
        same: ``tokenflex.json`` doesn't name another save.
        edited: it names none, so that it may say something else than the weights.
    """
    if not same and carried is None:
        raise ConfigError(
            f"{page} was saved with other weights than {WEIGHTS_NAME} holds. Copy both files of one "
            f"save; if you changed the weights on purpose, remove the key {DIGEST!r} from {JSON_NAME}."
        )
    if same and not edited and seal is not None and spec != carried:
        raise ConfigError(
            f"{page} says something else than {WEIGHTS_NAME} was saved with. Copy both files of one save; if you "
            f"changed the description on purpose, remove the key {DIGEST!r} from it."
        )
    return spec if same else carried


def _carried(weights: Path, metadata: Mapping[str, str]) -> tuple[Any, str | None]:
    """The description that weights carry along, and its seal; None where they have none."""
    unknown = sorted(metadata.keys() - {DESCRIPTION, "format"})
    if unknown:
        raise ConfigError(
            f"{weights}: unknown metadata {unknown!r:.200}, known is {DESCRIPTION!r}. The file is damaged, or written "
            "by another version of tokenflex."
        )
    if DESCRIPTION not in metadata:
        return None, None
    carried = reading.json_text(metadata[DESCRIPTION], f"{weights}: {DESCRIPTION}")
    seal = carried.pop(SEAL, None) if isinstance(carried, dict) else None
    check_shape(carried)
    if seal is not None and not isinstance(seal, str):
        raise ConfigError(f"{weights}: {SEAL}={seal!r:.200} isn't a text; the file is damaged.")
    return carried, seal


def _seal(spec: Spec, state: Mapping[str, Tensor]) -> str:
    """Digest of a description and the tensors that belong to it."""
    text = json.dumps(spec, sort_keys=True)
    return hashlib.sha256(f"{text}\n{of_tensors(state)}".encode()).hexdigest()


def holds_parts_only(source: Any) -> bool:
    """Whether it is a folder here that `save_parts` wrote, without a model beside the parts."""
    folder = Path(source) if isinstance(source, str | os.PathLike) else None
    return folder is not None and (folder / JSON_NAME).is_file() and not (folder / "config.json").exists()


def _not_parts(source: Path, missing: str) -> str:
    """What a folder without one of the two files is, and how to load that."""
    try:
        kind = reading.json_file(source / "config.json", largest=reading.LARGEST_SETTINGS).get("model_type")
    except (ConfigError, AttributeError):
        kind = None
    if kind == "tokenflex":
        return (
            f"{source} holds a whole model, host and parts, as save_pretrained() writes it, and no {missing}. Load it "
            f"with AutoModelForImageTextToText.from_pretrained({str(source)!r}); no host is needed."
        )
    hint = f" It holds a model of type {kind!r} without parts: load that as the host." if kind is not None else ""
    return f"{source} has no {missing}; save_parts() writes {JSON_NAME} and {WEIGHTS_NAME} into one folder.{hint}"


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [JSON_NAME, WEIGHTS_NAME, "config.json"]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise ConfigError(f"{repository!r} is no folder here and can't be fetched from the hub: {error}") from error
