"""Parts on disk: ``tokenflex.json`` says what they are, ``tokenflex.safetensors`` holds their weights.

Names and data only: no import paths, no pickles, nothing that could run.

The two files are replaced one after the other, and still nobody reads halves of two saves: ``tokenflex.json`` has the
digest of the weights it belongs to, and the weights carry their own description along, which counts while the other
file is of another save. Files of versions that did neither are read as they are.
"""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from packaging.version import Version
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenflex import cards, catalog, compressor, registry
from tokenflex.compressor import Compressor
from tokenflex.contracts import Component, ComponentConfig, Grid, HostAdapter
from tokenflex.errors import ConfigError, UnknownComponentError, UnsupportedHostError
from tokenflex.files import locked, sweep, whole, write_whole

FORMAT = 1
JSON_NAME, WEIGHTS_NAME = "tokenflex.json", "tokenflex.safetensors"
DIGEST, DESCRIPTION = "weights", "description"
"""Key of ``tokenflex.json`` with the digest of the weights; key of the weights' metadata with the description."""
ESCALATE = "escalate"
"""Key of a description, left out where it isn't known, with how answers may escalate."""
OLDEST_TRANSFORMERS = "5.18"
KINDS = {
    "scaler": registry.scalers,
    "router": registry.routers,
    "voter": registry.voters,
    "policy": registry.policies,
}
DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
"""A distribution's name, as packages are published under."""
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
Spec = dict[str, Any]


def adapter_for(host: nn.Module, options: Mapping[str, Any] | None = None) -> HostAdapter:
    """The registered adapter for a host.

    Args:
        options: settings of the adapter, as saved in a spec: plain data, under names that its constructor has.

    Raises:
        UnsupportedHostError: transformers is too old, no adapter is registered for the host's
            ``model_type``, or the adapter declines.
        ConfigError: the adapter doesn't know an option, or can't use it.
    """
    model_type = getattr(getattr(host, "config", None), "model_type", None)
    if isinstance(host, str | os.PathLike):
        raise UnsupportedHostError(
            f"{os.fspath(host)!r} names a model, and the loaded model is wanted: "
            f"AutoModelForImageTextToText.from_pretrained({os.fspath(host)!r}). A folder of parts goes to "
            "tokenflex.load_parts(folder, host=...)."
        )
    if model_type == "tokenflex":
        raise UnsupportedHostError(
            "this model has parts already (it is a FlexModel). Give its host to have others: wrap(flex.host, ...)."
        )
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
    given = _known_options(served, {} if options is None else options)
    try:
        return served(host, **given)
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"{served.__name__} can't be made with the options {given!r}: {error}.") from error


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


def _known_options(served: type[HostAdapter], options: Any) -> dict[str, Any]:
    """Options as keyword arguments of an adapter's constructor, or of the one it passes them on to."""
    known: set[str] = set()
    for owner in inspect.getmro(served):
        if "__init__" in vars(owner):
            parameters = inspect.signature(vars(owner)["__init__"]).parameters.values()
            known |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    if not isinstance(options, Mapping) or not known.issuperset(options):
        raise ConfigError(
            f"options {options!r} of the host aren't all known to {served.__name__}; it knows {sorted(known)}. "
            "The file was edited or written by another version."
        )
    return dict(options)


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
    _check_shape(spec)
    grid = adapter.grid
    for key, actual in (
        ("model_type", adapter.model_type),
        ("dim", adapter.dim),
        ("grid", [grid.rows, grid.cols]),
    ):
        if spec["host"][key] != actual:
            raise ConfigError(_other_host(key, spec["host"][key], actual))
    configs = {kind: config_from(kind, part) for kind, part in spec["parts"].items()}
    return compressor.build(**configs, dim=adapter.dim, grid=grid)


def _check_shape(spec: Any) -> None:
    known = {"format", "host", "parts"}
    _expect_keys(spec, known | {ESCALATE} if isinstance(spec, Mapping) and ESCALATE in spec else known, JSON_NAME)
    if spec["format"] != FORMAT:
        raise ConfigError(f"format {spec['format']!r} isn't known; this version reads {FORMAT}. Upgrade tokenflex.")
    host = spec["host"]
    told = {"name", "revision"}.intersection(host) if isinstance(host, Mapping) else set()
    _expect_keys(host, {"model_type", "dim", "grid", "options"} | told, f"{JSON_NAME}: host")
    _expect_keys(spec["parts"], set(KINDS), f"{JSON_NAME}: parts")
    for kind, part in spec["parts"].items():
        _expect_keys(part, {"name", "provider", "version", "config"}, f"{JSON_NAME}: {kind}")


def config_of(kind: str, part: str | ComponentConfig) -> ComponentConfig:
    """A part's config from its registered name (default settings) or as it is."""
    return part if isinstance(part, ComponentConfig) else KINDS[kind].get(part).Config()


def told(kind: str, config: ComponentConfig) -> str:
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
    return found.Config.from_dict(part["config"])


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
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with locked(target):
        for name in (WEIGHTS_NAME, JSON_NAME):
            sweep(target, name)
        with whole(target / WEIGHTS_NAME) as scratch:
            save_file(tensors, scratch, metadata={DESCRIPTION: json.dumps(spec)})
            with scratch.open("rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
        write_whole(target / JSON_NAME, json.dumps({**spec, DIGEST: f"sha256:{digest}"}, indent=2) + "\n")


def save_parts(
    folder: str | os.PathLike[str],
    parts: Compressor,
    facts: HostFacts,
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
    spec = with_origin({**describe(parts, facts), **(more or {})}, facts)
    save(folder, spec, parts.state_dict() if state is None else state)
    if not (Path(folder) / "config.json").is_file():  # beside a whole model, whose card says more
        cards.write_card(Path(folder), cards.of_parts(spec, parts.scaler.granularities(facts.grid)))


def with_origin(spec: Spec, facts: HostFacts) -> Spec:
    """The description with the name and revision of the host's repository, where they are known."""
    config = getattr(getattr(facts, "host", None), "config", None)
    return {**spec, "host": {**spec["host"], **cards.origin(config)}}


def load(folder: str | os.PathLike[str], revision: str | None = None) -> tuple[Spec, dict[str, Tensor]]:
    """Read both files, of one and the same save, from a folder or, where there is no such folder, from the model hub.

    Args:
        revision: branch, tag or commit of a repository; folders have none.

    Raises:
        ConfigError: a file is missing or isn't readable, the two belong to different saves, or the weights hold NaN
            or infinity.
    """
    source = Path(folder)
    if not source.is_dir():
        source = _download(str(folder), revision)
    elif revision is not None:
        raise ConfigError(
            f"revision={revision!r} goes with a repository on the hub; {source} is a folder. Leave it out."
        )
    try:
        text = (source / JSON_NAME).read_text(encoding="utf-8")
        weights = (source / WEIGHTS_NAME).read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(_not_parts(source, Path(error.filename or JSON_NAME).name)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source / JSON_NAME} or {WEIGHTS_NAME} can't be read: {error}") from error
    try:
        state = tensors_of(weights)
    except SafetensorError as error:
        raise ConfigError(f"{source / WEIGHTS_NAME} can't be read as safetensors: {error}. Save it again.") from error
    require_sound(state, str(source / WEIGHTS_NAME))
    spec = _description(source, text, weights)
    _check_shape(spec)
    return spec, state


def holds_parts_only(source: Any) -> bool:
    """Whether it is a folder here that `save_parts` wrote, without a model beside the parts."""
    folder = Path(source) if isinstance(source, str | os.PathLike) else None
    return folder is not None and (folder / JSON_NAME).is_file() and not (folder / "config.json").exists()


def _not_parts(source: Path, missing: str) -> str:
    """What a folder without one of the two files is, and how to load that."""
    try:
        kind = json.loads((source / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind == "tokenflex":
        return (
            f"{source} holds a whole model, host and parts, as save_pretrained() writes it, and no {missing}. Load it "
            f"with AutoModelForImageTextToText.from_pretrained({str(source)!r}); no host is needed."
        )
    told = f" It holds a model of type {kind!r} without parts: load that as the host." if kind is not None else ""
    return f"{source} has no {missing}; save_parts() writes {JSON_NAME} and {WEIGHTS_NAME} into one folder.{told}"


def fill(parts: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Put weights into parts.

    Args:
        where: the file or folder they come from, for the message.

    Raises:
        ConfigError: weights are missing, left over, or of another shape.
    """
    wanted = {name: tuple(value.shape) for name, value in parts.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = [
        f"{name} {found[name]} instead of {wanted[name]}"
        for name in wanted.keys() & found
        if found[name] != wanted[name]
    ]
    if wrong or wanted.keys() != found.keys():
        raise ConfigError(
            f"{where}: weights and description disagree: missing tensors {sorted(wanted.keys() - found)}, unknown "
            f"tensors {sorted(found.keys() - wanted)}, wrong shapes {sorted(wrong)}. Copy both files of one save."
        )
    parts.load_state_dict(state)


def _description(source: Path, text: str, weights: bytes) -> Spec:
    """What describes the weights: ``tokenflex.json``, or what they carry along if that is of another save."""
    spec = _parsed(text, source / JSON_NAME)
    digest = spec.pop(DIGEST, None) if isinstance(spec, dict) else None
    if digest in (None, f"sha256:{hashlib.sha256(weights).hexdigest()}"):
        return spec
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    carried = header.get("__metadata__", {}).get(DESCRIPTION)
    if carried is None:
        raise ConfigError(
            f"{source / JSON_NAME} was saved with other weights than {WEIGHTS_NAME} holds. Copy both files of one "
            f"save; if you changed the weights on purpose, remove the key {DIGEST!r} from {JSON_NAME}."
        )
    return _parsed(carried, source / WEIGHTS_NAME)


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} isn't valid JSON: {error}.") from error


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
    for name, given in TIMM.items():
        options = data.get(given) or {}
        loads = sorted(TIMM_LOADS.intersection(options)) if isinstance(options, Mapping) else options
        if loads or not re.fullmatch(r"[\w.-]*", str(data.get(name) or "")):
            raise ConfigError(
                f"config.json: {data['model_type']!r} with {name}={data.get(name)!r} and {given} {loads!r} names "
                "weights elsewhere than in its folder. Get the file from someone you trust."
            )


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [JSON_NAME, WEIGHTS_NAME, "config.json"]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise ConfigError(f"{repository!r} is no folder here and can't be fetched from the hub: {error}") from error
