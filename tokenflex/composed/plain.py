"""What ``config.json`` of a composed model may say: known names and plain values, nothing that loads or runs."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from tokenflex.errors import ConfigError

WORD = re.compile(r"[A-Za-z0-9_.,\- ]{0,64}")
"""Text without slashes and colons, so no path, no address and no source of models."""


def expect(spec: Any, keys: Collection[str], where: str) -> Mapping[str, Any]:
    """A description with exactly these keys.

    Raises:
        ConfigError: it isn't that.
    """
    if not isinstance(spec, Mapping) or set(spec) != set(keys):
        shown = sorted(map(str, spec)) if isinstance(spec, Mapping) else spec
        raise ConfigError(
            f"{where} is to have the keys {sorted(keys)}, not {shown!r}. The file was edited or written by another "
            "version of tokenflex."
        )
    layers(spec.get("layer", -1), where)
    return spec


def layers(layer: Any, where: str) -> int | list[int]:
    """A layer, or several different ones counted from the last, as a file may hold them.

    Raises:
        ConfigError: it is something else.
    """
    if type(layer) is int:
        return layer
    several = list(layer) if isinstance(layer, list | tuple) else []
    if not several or not all(type(one) is int and one < 0 for one in several) or len(set(several)) < len(several):
        raise ConfigError(
            f"{where}: layer={layer!r}; expected a whole number, or a list of different ones below 0, such as "
            "[-2, -3, -1]: counted from the last layer, the first of them gives the grid."
        )
    return several


def settings(options: Any, known: Collection[str], where: str, remedy: str) -> dict[str, Any]:
    """Settings under known names, with plain values: numbers, words, nothing, and lists of them.

    Args:
        where, remedy: for the message.

    Raises:
        ConfigError: a name isn't known, or a value isn't plain.
    """
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where}: {options!r} is no object with settings. {remedy}")
    wrong = [f"{key}={value!r}" for key, value in options.items() if key not in known or not is_plain(value)]
    if wrong:
        raise ConfigError(
            f"{where}: {', '.join(wrong)} can't be read back from a file, which may hold numbers and words under these "
            f"names only: {', '.join(sorted(known))}. {remedy}"
        )
    return dict(options)


def is_plain(value: Any) -> bool:
    """Whether a value is nothing, a finite number, a word, or a list of such."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, int) or (isinstance(value, str) and WORD.fullmatch(value) is not None)


def timm_name(timm: Any, name: Any, where: str) -> str:
    """The name of one of timm's own models, which says nothing of where weights come from.

    Raises:
        ConfigError: timm doesn't know it, or it names a repository or a folder.
    """
    if not isinstance(name, str) or not WORD.fullmatch(name) or not timm.is_model(name):
        raise ConfigError(
            f"{where}: {name!r} is none of timm's own models, which are all that a file may name. If it is a new one: "
            'pip install -U "tokenflex[custom]".'
        )
    return name
