"""Docstrings whose entries name several things at once, for readers that know one name per entry."""

import re
from collections.abc import Collection, Iterator

SECTION = re.compile(r"^( *)(?:Args|Arguments|Parameters|Attributes|Keyword Args):\s*$")
ENTRY = re.compile(r"^ *(\*{0,2}\w+(?:, \*{0,2}\w+)*): ")


def separate(text: str, known: Collection[str] = ()) -> str:
    """Give each name of an entry such as ``level, budget: as for ...`` an entry of its own with the same text.

    Args:
        text: a docstring without the indentation that its code gives it.
        known: the names of the object's parameters. One that is known with stars only gets its stars.
    """
    lines = text.split("\n")
    return "\n".join(
        line for entry, of_section in _entries(lines) for line in (_separated(entry, known) if of_section else entry)
    )


def _entries(lines: list[str]) -> Iterator[tuple[list[str], bool]]:
    """The lines with whether they are an entry of a section: those of an entry together, all others one by one."""
    head, step, entry = -1, None, []
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if head >= 0 and line.strip() and indent <= head:
            head = -1
        if head >= 0 and step is None and line.strip():
            step = indent
        if entry and (head < 0 or (line.strip() and indent == step)):
            yield entry, True
            entry = []
        if head >= 0 and step is not None and (entry or indent == step):
            entry.append(line)
            continue
        found = SECTION.match(line)
        if found:
            head, step = len(found[1]), None
        yield [line], False
    if entry:
        yield entry, True


def _separated(entry: list[str], known: Collection[str]) -> list[str]:
    first, *rest = entry
    found = ENTRY.match(first)
    if found is None:
        return entry
    indent = first[: len(first) - len(first.lstrip())]
    described = first[found.end() :]
    out: list[str] = []
    for name in found[1].split(", "):
        starred = next((f"{stars}{name}" for stars in ("", "*", "**") if f"{stars}{name}" in known), name)
        out += [f"{indent}{starred}: {described}", *rest]
    return out
