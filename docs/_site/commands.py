"""A hook of mkdocs: the page of the commands is made from their own parsers, as ``--help`` is."""

import argparse
import re
from collections.abc import Iterable, Iterator
from typing import Any

from tokenflex.cli import main

MARK = "<!-- commands -->"
SPECIAL = re.compile(r"([\\`*_<>\[\]|])")


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Put the commands where the page has its mark."""
    return markdown.replace(MARK, described()) if MARK in markdown else markdown


def described() -> str:
    """Every command: a heading, what it does, and its options."""
    return "\n\n".join(
        f"## {name}\n\n{_told(parser.description)}\n\n{_options(name, parser)}" for name, parser in commands().items()
    )


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parsers by the names of their commands."""
    actions = main.build_parser()._actions
    return next(dict(action.choices) for action in actions if isinstance(action, argparse._SubParsersAction))


def _options(name: str, parser: argparse.ArgumentParser) -> str:
    groups = [(group.title or "", group._group_actions) for group in parser._action_groups]
    listed = ["\n".join([f"**{_told(title)}**", "", *_lines(parser, actions)]) for title, actions in groups if actions]
    if name == "train":
        listed += _keys()
    elif not parser.add_help:
        listed.append("Keys of a recipe are options too: see [train](#train).")
    return "\n\n".join(listed)


def _lines(parser: argparse.ArgumentParser, actions: Iterable[argparse.Action]) -> Iterator[str]:
    formatter: Any = parser._get_formatter()
    for action in actions:
        called = formatter._format_action_invocation(action)
        told = formatter._expand_help(action) if action.help else ""
        yield f"- `{called}`" + (f": {_told(told)}" if told else "")


def _keys() -> list[str]:
    """Keys of a recipe: this library's with what they are, and transformers' by their names."""
    from dataclasses import fields

    from transformers import TrainingArguments

    from tokenflex.training import FlexTrainingArguments, recipe

    shared = {one.name for one in fields(TrainingArguments)} & {one.name for one in fields(FlexTrainingArguments)}
    actions = [action for action in recipe.parser()._actions if action.dest != "help"]
    own = [f"- `{action.option_strings[0]}`{_choices(action)}: {_told(action.help)}" for action in actions
           if action.dest not in shared]  # fmt: skip
    theirs = ", ".join(f"`--{action.dest}`" for action in actions if action.dest in shared)
    where = "Explained in transformers' documentation; [training](../training.md#from-python) says which are refused."
    return [
        "\n".join(["**keys of a recipe**", "", *own]),
        "**keys of transformers' TrainingArguments**",
        f"{where} {theirs}.",
    ]


def _choices(action: argparse.Action) -> str:
    default = "" if action.default in (None, argparse.SUPPRESS, [], "") else f", default `{action.default}`"
    return (f" ({', '.join(map(str, action.choices))})" if action.choices else "") + default


def _told(text: str | None) -> str:
    """Text in which nothing is markup."""
    return SPECIAL.sub(r"\\\1", " ".join((text or "").split()))
