"""What is offered under which name, by this package and by installed ones, without importing any of it (or torch)."""

import ast
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

from tokenflex import catalog
from tokenflex.errors import ConfigError, UnknownComponentError, nearest

BUILT_IN = "tokenflex"
BUILT_INS: Mapping[str, Mapping[str, str]] = {
    "scaler": catalog.SCALERS,
    "router": catalog.ROUTERS,
    "voter": catalog.VOTERS,
    "policy": catalog.POLICIES,
    "confidence": catalog.CONFIDENCES,
    "host": catalog.HOSTS,
}
"""Kind -> name -> ``module:Class``."""


@dataclass(frozen=True)
class Provider:
    """Who offers a component: distribution, its version, and the object or where to import it from."""

    distribution: str
    version: str
    target: Any

    @property
    def path(self) -> str | None:
        """Where it is, as ``module:Class``; None for an object that was registered itself."""
        return self.target if isinstance(self.target, str) else getattr(self.target, "value", None)


def group(kind: str) -> str:
    """The entry points' group of a kind."""
    return "tokenflex.policies" if kind == "policy" else f"tokenflex.{kind}s"


def providers(kind: str) -> dict[str, list[Provider]]:
    """Who offers parts of a kind: name -> the providers of that name."""
    found: dict[str, list[Provider]] = {}
    for name, provider in _installed(_places())[kind]:
        found.setdefault(name, []).append(provider)
    return found


def _places() -> tuple[tuple[str, int], ...]:
    """Where distributions lie, and when something was last installed or removed there."""
    return tuple((place, _changed(place)) for place in sys.path)


def _changed(place: str) -> int:
    try:
        return os.stat(place or os.curdir).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=1)
def _installed(places: tuple[tuple[str, int], ...]) -> dict[str, list[tuple[str, Provider]]]:
    """Kind -> names and who offers them; every distribution's files are read for that.

    Args:
        places: see `_places`; while they are the same, nothing is read again.
    """
    own = version(BUILT_IN)
    found = {
        kind: [(name, Provider(BUILT_IN, own, path)) for name, path in BUILT_INS[kind].items()] for kind in BUILT_INS
    }
    for kind, offers in found.items():
        for point in entry_points(group=group(kind)):
            dist = point.dist
            offers.append((point.name, Provider(dist.name if dist else "unknown", dist.version if dist else "", point)))
    return found


def elsewhere(kind: str, here: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Names that a distribution of this project offers and nobody here does -> that distribution.

    Args:
        here: names that are offered; None: `providers`.
    """
    known = providers(kind) if here is None else here
    return {name: dist for name, dist in catalog.ELSEWHERE.get(kind, {}).items() if name not in known}


def unknown(kind: str, name: object, here: Mapping[str, Any] | None = None) -> str:
    """What to say of a name that nobody offers: where to get it, or the nearest one.

    Args:
        here: as for `elsewhere`.
    """
    names = sorted(providers(kind) if here is None else here)
    missing = elsewhere(kind, here)
    package = missing.get(str(name))
    if package is not None:
        return f"the {kind} {name!r} is part of {package}, which isn't installed: pip install {package}"
    return f"no {kind} is called {name!r}.{nearest(str(name), names, missing)} There are: {', '.join(names)}."


def unknown_setting(name: str) -> str:
    """What to say of a setting of an evaluation that can't be understood."""
    kind = setting_kind(name)
    return f"setting {name!r} isn't known.{nearest(kind, catalog.SETTINGS)} Use {catalog.SETTING_FORMS}."


def setting_kind(name: str) -> str:
    """What comes before options and numbers in the name of a setting."""
    return re.split("[:@]", name.strip(), maxsplit=1)[0]


def require(kind: str, name: str) -> None:
    """Refuse a name that nobody offers.

    Raises:
        UnknownComponentError: see `unknown`.
    """
    if name not in providers(kind):
        raise UnknownComponentError(unknown(kind, name))


def require_kind(kind: str) -> None:
    """Refuse what is no kind.

    Raises:
        ConfigError: names the kinds.
    """
    if kind not in BUILT_INS:
        raise ConfigError(f"{kind}: no such kind; there are {', '.join(BUILT_INS)}.{nearest(kind, BUILT_INS)}")


def summary(provider: Provider) -> str | None:
    """First line of a class's documentation, read from its source; empty where it can't be found there.

    Returns:
        None where there is no such module.
    """
    module, _, name = (provider.path or "").partition(":")
    file = _file(module)
    if file is None:
        return None
    return _documented(file).get(name.partition(" ")[0], "").strip().partition("\n")[0]


@cache
def _documented(file: Path) -> dict[str, str]:
    """The docstrings of a file's classes: class -> docstring."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    return {node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.ClassDef)}


def _file(module: str) -> Path | None:
    """The source of a module; only its outermost package is looked up, and that doesn't import it."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        at = Path(folder, *rest)
        for file in (at.with_name(f"{at.name}.py"), at / "__init__.py"):
            if file.is_file():
                return file
    return None
