"""Strings from anywhere in Markdown and HTML, where they must stay text: names, kinds, settings, prompts."""

import re
from typing import Any

DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""What turns the direction of all text that follows, so that a page says something else than it seems to."""

SPECIAL = re.compile(r"[\\`*\[\]<>|~&!]|(?<![^\W_])_|_(?![^\W_])")
"""Characters that CommonMark and GitHub's tables may read as markup; an underscore within a word is none."""
FIRST = re.compile(r"^([#+=-])(?=[#+=-]*(?:\s|$))|^(\d+)(?=[.)](?:\s|$))")
"""What may begin a heading, a list or a rule."""


def escaped(text: Any) -> str:
    """A string for one line of Markdown, such as a table's cell, that reads as it was given.

    White space, line breaks among it, becomes single blanks; control characters vanish.
    """
    line = " ".join("".join(c for c in str(text) if c.isprintable() or c.isspace()).split())
    return FIRST.sub(lambda m: f"\\{m[1]}" if m[1] else f"{m[2]}\\", SPECIAL.sub(r"\\\g<0>", line))


def readable(text: Any) -> Any:
    """A string for a page of HTML, which escapes it: in the direction it is written in. Anything else stays as it is.

    White space stays; control characters and those that turn the direction of what follows vanish.
    """
    if type(text) is not str:
        return text
    return DIRECTIONS.sub("", "".join(c for c in text if c >= " " or c in "\t\n\r"))


def code(text: Any) -> str:
    """A string as inline code of one line or a table's cell: backticks, pipes and angle brackets become blanks.

    Control characters vanish, those that turn the direction of text among them.
    """
    visible = "".join(c for c in str(text) if c.isprintable() or c.isspace())
    kept = re.sub(r"[\s`|<>]+", " ", visible).strip()
    return f"`{kept}`" if kept else ""
