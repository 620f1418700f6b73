"""A profile to read: tables on the screen, ``profile.json``, ``profile.md`` and ``profile.html``."""

import json
import os

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tokenflex.files import as_path, locked, sweep, write_whole
from tokenflex.markup import escaped
from tokenflex.profiling.lines import LEGEND, Rows, costs, protocol, sentences, times, title
from tokenflex.profiling.page import profile_html
from tokenflex.profiling.result import Profile


def show(console: Console, profile: Profile) -> None:
    """Print the tables and what they mean."""
    for batch in profile.batches:
        console.print(title(batch), style="bold")
        for rows in (times(batch), costs(batch)):
            table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
            for i, head in enumerate(rows.head):
                table.add_column(head, justify="right" if i else "left", no_wrap=True)
            for cells in rows.body:
                table.add_row(*cells)
            console.print(table)
        for line in sentences(batch):
            console.print(line, markup=False, highlight=False)
        console.print()
    for line in (LEGEND, protocol(profile), *(f"WARNING: {told}" for told in profile.warnings)):
        console.print(line, markup=False, highlight=False)


def write(folder: str | os.PathLike[str], profile: Profile) -> None:
    """Write ``profile.json``, ``profile.md`` and ``profile.html``, each complete or not at all."""
    target = as_path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with locked(target):
        sweep(target, "profile.*")
        write_whole(target / "profile.json", json.dumps(profile.to_dict(), indent=2) + "\n")
        write_whole(target / "profile.md", profile_markdown(profile))
        write_whole(target / "profile.html", profile_html(profile))


def profile_markdown(profile: Profile) -> str:
    """A profile as a page of Markdown."""
    blocks = ["# Time and memory beside the vanilla host", escaped(protocol(profile)), LEGEND]
    blocks += [f"**{escaped(told)}**" for told in profile.warnings]
    for batch in profile.batches:
        blocks += [f"## {title(batch)}", _pipes(times(batch)), _pipes(costs(batch))]
        blocks.append("\n".join(f"* {escaped(line)}" for line in sentences(batch)))
    return "\n\n".join(blocks) + "\n"


def _pipes(rows: Rows) -> str:
    head, *body = ([escaped(cell) for cell in cells] for cells in (rows.head, *rows.body))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))
