"""``tokenflex plugins``: what is installed, who it comes from, and whether it can be used."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenflex import offered

ROOM = 100
"""Columns of a terminal from which on summaries are shown too."""
MISSING = "not installed"


def register(commands: Any) -> None:
    """Add the command, with its options, to the parsers of ``tokenflex``."""
    parser = commands.add_parser(
        "plugins",
        help="list scalers, routers, voters, policies, confidences and hosts, built in and installed",
        description="List every registered name with its kind and the distribution it comes from, and what this "
        "project's other distributions would add. Nothing is imported for that; --try imports everything and says what "
        "can't be used. Built-in hosts are left out unless they are asked for: 'tokenflex plugins host'.",
    )
    parser.add_argument("kind", nargs="*", metavar="KIND", help=f"only these kinds: {', '.join(offered.BUILT_INS)}")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--try", action="store_true", dest="tried", help="import everything, and say what is broken")
    style.add_argument("--json", action="store_true", help="the same as a JSON list, one object per name")
    style.add_argument("--write", metavar="PAGE", type=Path,
                       help="try and time every method, and renew the tables in a Markdown page")  # fmt: skip
    parser.set_defaults(run=run, takes_overrides=False)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """List; 0 also when something is broken, since that harms nothing else."""
    for kind in options.kind:
        offered.require_kind(kind)
    kinds = [kind for kind in offered.BUILT_INS if not options.kind or kind in options.kind]
    if options.write:
        return _write(options.write)
    if options.tried or options.json:
        from tokenflex import registry

        found = [kind.listing(name) for kind in registry.REGISTRIES if kind.kind in kinds for name in kind.names()]
        if options.json:
            print(json.dumps([asdict(one) for one in found], indent=2))
            return 0
        rows = [[one.kind, one.name, one.provider, one.version, one.state, one.cause or one.summary] for one in found]
    else:
        rows = [row for kind in kinds for row in _offers(kind)]
    hidden = [row for row in rows if not options.kind and row[0] == "host" and row[2] == offered.BUILT_IN]
    _show([row for row in rows if row not in hidden], causes=options.tried)
    if hidden:
        print(f"and {len(hidden)} built-in hosts: 'tokenflex plugins host' lists them, 'tokenflex hosts' tries them")
    return 0


def _offers(kind: str) -> Iterable[list[str]]:
    """Rows of a kind, by name: what is there, and what other distributions of this project would add."""
    here = offered.providers(kind)
    elsewhere = offered.elsewhere(kind, here)
    for name in sorted({*here, *elsewhere}):
        if name in elsewhere:
            yield [kind, name, elsewhere[name], "", MISSING, f"pip install {elsewhere[name]}"]
            continue
        offers = here[name]
        who = " and ".join(dict.fromkeys(offer.distribution for offer in offers))
        versions = " and ".join(dict.fromkeys(offer.version for offer in offers))
        summary = offered.summary(offers[0])
        state = "clash" if len(offers) > 1 else "no such file" if summary is None else ""
        yield [kind, name, who, versions, state, summary or ""]


def _show(rows: Sequence[Sequence[str]], causes: bool) -> None:
    """A table as wide as the terminal; names are never broken, and summaries are shown where there is room.

    Args:
        causes: the last column says why something is broken, and is shown whatever the room.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    heads = ["kind", "name", "provider", "version", "state", "summary"]
    shown = [i for i in range(6) if i != 5 or causes or console.width >= ROOM]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i in shown:
        table.add_column(heads[i], no_wrap=i < 2, overflow="fold")
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    console.print(table, markup=False)


def _write(page: Path) -> int:
    from tokenflex.tables import methods as methods_table

    methods_table.renew(page, lambda name: print(name, file=sys.stderr))
    return 0
