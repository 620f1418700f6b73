"""The adapter that serves a host, made with options that may come from a file."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

import transformers
from packaging.version import Version
from torch import nn

from tokenflex import catalog, registry
from tokenflex.contracts import HostAdapter
from tokenflex.contracts.settings import misfit
from tokenflex.errors import ConfigError, TokenFlexError, UnknownComponentError, UnsupportedHostError, nearest

OLDEST_TRANSFORMERS = "5.18"
SANE = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, RuntimeError, TypeError, ValueError
)  # fmt: skip
"""What constructors raise for settings that they weren't made for."""


def adapter_for(host: nn.Module | str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> HostAdapter:
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
    settings = _known_options(served, {} if options is None else options)
    try:
        return served(host, **settings)
    except TokenFlexError:
        raise
    except SANE as error:
        raise ConfigError(f"{served.__name__} can't be made with the options {settings!r:.500}: {error}.") from error


def _known_options(served: type[HostAdapter], options: Any) -> dict[str, Any]:
    """Options as keyword arguments of an adapter's constructor, or of the one it passes them on to."""
    known: dict[str, Any] = {}
    for owner in inspect.getmro(served):
        if "__init__" in vars(owner):
            parameters = inspect.signature(vars(owner)["__init__"]).parameters.values()
            known = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY} | known
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    unknown = [name for name in options if name not in known] if isinstance(options, Mapping) else []
    if not isinstance(options, Mapping) or unknown:
        raise ConfigError(
            f"options {options!r:.500} of the host aren't all known to {served.__name__}; it knows {sorted(known)}, "
            f"not {unknown!r:.200}.{nearest(str(unknown[0]), known) if unknown else ''} The file was edited or written "
            "by another version."
        )
    wrong = [
        f"{name}={value!r:.200} must be {expected}"
        for name, value in options.items()
        if (expected := misfit(value, known[name])) is not None
    ]
    if wrong:
        raise ConfigError(f"options of the host for {served.__name__}: {'; '.join(wrong)}. The file was edited.")
    return dict(options)
