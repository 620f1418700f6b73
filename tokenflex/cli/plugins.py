"""``tokenflex plugins``: what is installed, who it comes from, and whether it can be used."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KINDS = ("scaler", "router", "voter", "policy", "confidence", "host")


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "plugins",
        help="list scalers, routers, voters, policies, confidences and hosts, built in and installed",
        description="List every registered name with its kind, the distribution it comes from, and whether it can be "
        "imported. Built-in hosts are left out unless they are asked for: 'tokenflex plugins host'.",
    )
    parser.add_argument("kind", nargs="*", metavar="KIND", help=f"only these kinds: {', '.join(KINDS)}")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--json", action="store_true", help="print a JSON list of everything, one object per name")
    style.add_argument("--write", metavar="PAGE", type=Path,
                       help="try and time every method, and renew the tables in a Markdown page")  # fmt: skip
    parser.set_defaults(run=run, takes_overrides=False)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """List; 0 also when something is broken, since that harms nothing else."""
    from rich.console import Console
    from rich.table import Table

    from tokenflex import registry
    from tokenflex.errors import ConfigError

    if options.write:
        return _write(options.write)
    unknown = sorted(set(options.kind) - set(KINDS))
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: no such kind; there are {', '.join(KINDS)}.")
    wanted = [kind for kind in registry.REGISTRIES if not options.kind or kind.kind in options.kind]
    found = [kind.listing(name) for kind in wanted for name in kind.names()]
    if options.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
        return 0
    hidden = [one for one in found if not options.kind and one.kind == "host" and one.provider == registry.BUILT_IN]
    table = Table("kind", "name", "provider", "version", "state", "summary")
    for one in found:
        if one not in hidden:
            table.add_row(one.kind, one.name, one.provider, one.version, one.state, one.cause or one.summary)
    console = Console()
    console.print(table)
    if hidden:
        console.print(
            f"and {len(hidden)} built-in hosts: 'tokenflex plugins host' lists them, 'tokenflex hosts' tries them"
        )
    return 0


def _write(page: Path) -> int:
    from tokenflex.testing import methods_table

    methods_table.renew(page, lambda name: print(name, file=sys.stderr))
    return 0
