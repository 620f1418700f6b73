"""Strings from anywhere in Markdown, where they must stay text: names, kinds, settings, prompts."""

import re
from typing import Any

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


def code(text: Any) -> str:
    """A string as inline code of one line or a table's cell: backticks, pipes and angle brackets become blanks."""
    kept = re.sub(r"[\s`|<>]+", " ", str(text)).strip()
    return f"`{kept}`" if kept else ""
