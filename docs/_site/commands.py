"""A hook of mkdocs: the page of the commands is made from their own ``--help``."""

import argparse
import contextlib
import io
import os
from typing import Any

from tokenflex.cli import main

MARK = "<!-- commands -->"
WIDTH = "78"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Put the commands where the page has its mark."""
    return markdown.replace(MARK, described()) if MARK in markdown else markdown


def described() -> str:
    """Every command: a heading, and what ``--help`` prints."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        return "\n\n".join(
            f"## {name}\n\n```text\n{_help(name, parser).rstrip()}\n```" for name, parser in commands().items()
        )
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parsers by the names of their commands."""
    actions = main.build()._actions
    return next(dict(action.choices) for action in actions if isinstance(action, argparse._SubParsersAction))


def _help(name: str, parser: argparse.ArgumentParser) -> str:
    """As printed; a command with a help of its own (``train``, whose options are a recipe's keys) prints that."""
    if parser.add_help:
        return parser.format_help()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main.main([name, "--help"])
    return printed.getvalue()
