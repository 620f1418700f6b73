"""Names of version 0.1 that still work in 0.2, each with a ``DeprecationWarning``; version 0.3 no longer has them."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def warn(old: str, new: str) -> None:
    """Say to whoever used the old name what it is called now."""
    warnings.warn(f"{old} is now called {new}; version 0.3 no longer knows the old name.", DeprecationWarning, 3)


def attributes(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for a module some of whose names have changed.

    Args:
        module: its name.
        names: old name -> where the object is now, as ``"module:name"``.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = names[name].partition(":")
        warn(f"{module}.{name}", f"{home}.{new}")
        return getattr(import_module(home), new)

    return find
