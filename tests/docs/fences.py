"""The fenced blocks of README.md and docs/, as several tests read them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
"""Path below the repository -> text."""
FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- not run: (?P<reason>[^\n]*?) -->\n(?P=indent))?"
    r"(?P<marks>```+)(?P<language>[\w+-]*)(?P<options>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=marks)$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: number of its first line of text in the page, from 1.
        reason: why it isn't run, as the comment on the line before says; None without one.
    """

    page: str
    line: int
    language: str
    options: str
    text: str
    reason: str | None


def blocks(page: str) -> list[Block]:
    """Those of a page, from top to bottom."""
    text = PAGES[page]
    return [
        Block(
            page,
            text[: found.start("text")].count("\n") + 1,
            found["language"],
            found["options"].strip(),
            re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
            found["reason"],
        )
        for found in FENCE.finditer(text)
    ]


def without_blocks(page: str) -> str:
    """The prose of a page; the lines of blocks are empty."""
    return FENCE.sub(lambda found: "\n" * found[0].count("\n"), PAGES[page])
