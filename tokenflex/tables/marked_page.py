"""Tables in Markdown pages, made anew in place."""

from collections.abc import Sequence
from pathlib import Path

from tokenflex.errors import ConfigError
from tokenflex.files import locked, write_whole


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: its header, and one line per row."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def renew_page(page: Path, begin: str, end: str, body: str) -> None:
    """Put ``body`` in place of what stands between two marks; the page is complete at any time.

    Those who renew one page take turns, so that what one puts between its marks outlasts the other.

    Raises:
        ConfigError: the page has no marks.
    """
    with locked(page):
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        before, opened, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not opened or not closed:
            raise ConfigError(f"{page} has no lines {begin!r} and {end!r}; add both where the table belongs.")
        write_whole(page, f"{before}{opened}\n\n{body}\n{closed}{after}")
