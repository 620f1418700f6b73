"""``tokenflex check``: does a part keep its contract?"""

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenflex import offered
from tokenflex.errors import ConfigError, nearest


def register(commands: Any) -> None:
    """Add the command, with its options, to the parsers of ``tokenflex``."""
    parser = commands.add_parser(
        "check",
        help="run the conformance checks on a part",
        description="Run the conformance checks on a registered part, or on a class that isn't registered yet. Exits 1 "
        "if a check fails, or passes although it is expected to fail.",
    )
    parser.add_argument(
        "part", metavar="NAME|MODULE:CLASS", help="a registered name, or a class such as pkg.mod:MyScaler"
    )
    parser.add_argument("--kind", help="only this kind, where a scaler and a router share the name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                        help="a setting of the part, as YAML; may be repeated")  # fmt: skip
    parser.add_argument("--levels", type=int, default=5, choices=range(1, 6),
                        help="granularities that routers, voters and policies are built for (default 5)")  # fmt: skip
    parser.add_argument("--expect", action="append", default=[], metavar="CHECK=REASON",
                        help="a check the part is known to fail, and why; may be repeated")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run, takes_overrides=False)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Check and print; 1 if the part doesn't conform."""
    _require_known(options)
    import torch

    torch.set_num_threads(1)  # the checks are too small for more
    report = _report(options)
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    return 0 if report.ok else 1


def _require_known(options: argparse.Namespace) -> None:
    """Refuse a name that no distribution offers, before anything is imported; those of this process come later.

    Raises:
        ConfigError: with the nearest name.
    """
    kinds = [kind for kind in offered.BUILT_INS if options.kind in (None, kind)]
    if not kinds:
        raise ConfigError(f"--kind {options.kind}: there are {', '.join(offered.BUILT_INS)}.")
    known = dict.fromkeys(name for kind in kinds for name in offered.providers(kind))
    if ":" in options.part or options.part in known or "tokenflex.registry" in sys.modules:
        return
    raise _unknown(options.part, known)


def _unknown(name: str, known: Iterable[str]) -> ConfigError:
    hint = nearest(name, known) or " 'tokenflex plugins' lists what there is."
    return ConfigError(f"nothing is called {name!r}.{hint}")


def _report(options: argparse.Namespace) -> Any:
    """All checks of the part; of every part, where a scaler and a router (say) share the name."""
    from tokenflex.testing import Report

    if ":" in options.part:
        return _of_class(_class(options.part), options)
    found = _registered(options.part, options.kind)
    reports = [_of_class(kind.get(options.part), options) for kind in found]
    if len(found) == 1:
        return reports[0]
    named = [
        dataclasses.replace(result, check=f"{kind.kind}: {result.check}")
        for kind, report in zip(found, reports, strict=True)
        for result in report.results
    ]
    return Report(" and ".join(report.part for report in reports), tuple(named))


def _of_class(found: type, options: argparse.Namespace) -> Any:
    from tokenflex.contracts import Component, HostAdapter
    from tokenflex.tables.hosts import probe
    from tokenflex.testing import cases, check_component

    if issubclass(found, HostAdapter):
        report = None if ":" in options.part else probe(options.part)[1]
        if report is None:
            raise ConfigError(
                f"{options.part} is a host adapter, which is checked on a model: tokenflex.testing.check_host(adapter, "
                "tiny) in a test; docs/write_a_host.md shows how."
            )
        return report
    if not issubclass(found, Component):
        raise ConfigError(
            f"{options.part} is {found.__name__}, which is no scaler, router, voter, policy, confidence or host."
        )
    settings = {key: _yaml(value) for key, value in _pairs(options.settings, "--set KEY=VALUE").items()}
    expected = _pairs(options.expect, "--expect CHECK=REASON")
    try:
        config = found.Config.from_dict(settings)
        cases(config, levels=options.levels)[0].bench.build()
    except (TypeError, ConfigError) as error:
        raise ConfigError(f"{options.part} can't be built with {settings or 'its defaults'}: {error}") from error
    try:
        return check_component(config, levels=options.levels, expected_failures=expected)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _registered(name: str, kind: str | None) -> list[Any]:
    """The registries that have the name."""
    from tokenflex import registry

    every = [found for found in registry.REGISTRIES if kind in (None, found.kind)]
    having = [found for found in every if name in found.names()]
    if not having:
        raise _unknown(name, dict.fromkeys(other for found in every for other in found.names()))
    return having


def _class(path: str) -> type:
    """A class by ``module:name``; modules in the current folder are found, as by ``python -m``."""

    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(f"{path} can't be imported: {type(error).__name__}: {error}.") from error
    if not isinstance(found, type):
        raise ConfigError(f"{path} is {found!r}, not a class.")
    return found


def _pairs(items: Sequence[str], form: str) -> Mapping[str, str]:

    wrong = [text for text in items if "=" not in text]
    if wrong:
        raise ConfigError(f"{wrong[0]!r}: write {form}.")
    return dict(text.split("=", 1) for text in items)


def _yaml(text: str) -> Any:
    from tokenflex import reading

    return reading.yaml_text(text, f"--set {text!r:.200}")
