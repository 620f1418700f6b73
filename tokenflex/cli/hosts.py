"""``tokenflex hosts``: which architectures are served, found by trying each one here."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenflex import bars


def register(commands: Any) -> None:
    """Add the command, with its options, to the parsers of ``tokenflex``."""
    parser = commands.add_parser(
        "hosts",
        help="try every architecture and show which are served",
        description="Build a tiny random model of every image-text architecture in the installed transformers, run the "
        "laws of hosts on it, and show one row each. About a minute for all.",
    )
    parser.add_argument("model_type", nargs="*", help="only these")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--json", action="store_true", help="print a JSON list, one object per architecture")
    style.add_argument(
        "--write",
        metavar="PAGE",
        type=Path,
        help="renew the table in a Markdown page, and that of image sizes in a resolution.md beside it",
    )
    parser.set_defaults(run=run, takes_overrides=False)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Probe and print; progress goes to standard error."""
    import torch
    from rich.console import Console
    from rich.table import Table
    from transformers.utils import logging

    from tokenflex.errors import ConfigError, nearest
    from tokenflex.tables import hosts as hosts_table

    unknown = sorted(set(options.model_type) - set(hosts_table.architectures()))
    if unknown:
        hint = nearest(unknown[0], hosts_table.architectures())
        raise ConfigError(f"{unknown} aren't architectures of AutoModelForImageTextToText in this transformers.{hint}")
    logging.set_verbosity_error()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the models are too small for more
    names = options.model_type or hosts_table.architectures()
    if options.write and options.model_type:
        raise ConfigError("--write renews the whole table; leave out the architectures.")
    rows = []
    with bars.bar(len(names), what="hosts", unit="architecture") as bar:
        for row in hosts_table.probe_all(names):
            rows.append(row)
            bar.update()
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    elif options.write:
        hosts_table.renew(options.write, rows)
        sizes_page = options.write.with_name(hosts_table.SIZES_PAGE)
        if sizes_page.is_file():
            hosts_table.renew_sizes(sizes_page)
    else:
        table = Table(*hosts_table.HEADER)
        for row in rows:
            table.add_row(*row.cells())
        Console().print(table)
    return 0
