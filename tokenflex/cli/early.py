"""What a command can refuse before it imports torch: names that nobody offers, files and folders that aren't there."""

import importlib.util
import os
import re
from collections.abc import Iterable
from pathlib import Path

from tokenflex import catalog, offered
from tokenflex.errors import ConfigError, nearest


def part(kind: str, name: str | None) -> None:
    """Refuse a part's name that nobody offers; None passes.

    Raises:
        UnknownComponentError: with the nearest name, or where to get it.
    """
    if name is not None:
        offered.require(kind, name)


def packages(names: Iterable[str], install: str) -> None:
    """Refuse to go on without packages of an extra.

    Args:
        names: as they are imported.
        install: the command that gets them.

    Raises:
        ConfigError: names those that are missing.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} isn't installed; run {install}.")


def recipe(path: str) -> None:
    """Refuse a recipe that isn't there.

    Raises:
        ConfigError: names it, and recipes beside it that are nearly called so.
    """
    if Path(path).exists():
        return
    siblings = [found.name for found in Path(path).parent.glob("*.y*ml")] if Path(path).parent.is_dir() else []
    hint = nearest(Path(path).name, siblings)
    raise ConfigError(
        f"recipe {path!r} doesn't exist; give a YAML file.{hint} 'tokenflex train --help' lists its keys."
    )


def sources(*names: str | None) -> None:
    """Refuse paths that aren't there; names without a separator, or ``user/name``, may be on the model hub.

    Raises:
        ConfigError: names it.
    """
    for name in names:
        if name is None or Path(name).expanduser().exists():
            continue
        if re.match(r"[~./\\]|\w:\\", name) or name.count("/") > 1 or name.endswith("/"):
            raise ConfigError(
                f"{name!r} doesn't exist (looked up from {os.getcwd()}). Give a folder, or a repository of the model "
                "hub as user/name."
            )


def settings(names: Iterable[str] | None) -> None:
    """Refuse settings of an evaluation whose kind isn't known.

    Raises:
        ConfigError: with the nearest one.
    """
    for name in names or ():
        if offered.setting_kind(name) not in catalog.SETTINGS:
            raise ConfigError(offered.unknown_setting(name))
