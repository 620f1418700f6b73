"""Commands that pages show can be typed as they stand: each is there, and knows its options."""

import argparse
import contextlib
import io
import re
import shlex

import pytest

from tests.docs.fences import PAGES, blocks, without_blocks
from tokenflex.cli.main import build_parser

SHELL = ("", "bash", "sh", "console", "shell")
STARTS = re.compile(r"(?:^|&& |\$ |-m )(?:tokenflex|tokenflex\.cli\.main) (?=\w)")
ENDS = re.compile(r" (?:&&|\|\||\||>|#) .*| #.*")


def shown(page: str) -> list[tuple[str, str]]:
    """(where, words behind ``tokenflex``) of a page's fenced and inline commands."""
    found = []
    for block in blocks(page):
        if block.language in SHELL:
            text = block.text.replace("\\\n", " ")
            found += [(f"{page}:{block.line}", line) for line in text.splitlines()]
    prose = without_blocks(page)
    for code in re.finditer(r"`([^`]+)`", prose):
        found.append((f"{page}:{prose[: code.start()].count(chr(10)) + 1}", code[1].replace("\n", " ")))
    lines = [(where, line, STARTS.search(line)) for where, line in found]
    return [(where, ENDS.sub("", line[start.end() :])) for where, line, start in lines if start]


def complaint(words: str) -> str | None:
    """Why a command line can't be parsed; None if it can."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            options, rest = build_parser().parse_known_args(shlex.split(re.sub(r"(?<= )N$", "1", words)))
        except SystemExit as left:
            return None if left.code == 0 else said.getvalue().strip()
    if rest and not options.takes_overrides:
        return f"unknown: {rest}"
    return unknown_keys(rest) if rest else None


def unknown_keys(rest: list[str]) -> str | None:
    """Options of ``train`` and ``feedback`` beyond the parser's own are keys of a recipe."""
    from tokenflex.training import recipe

    known = recipe.parser()._option_string_actions
    wrong = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
    return f"no keys of a recipe: {wrong}" if wrong else None


FOUND = {page: lines for page in PAGES if (lines := shown(page))}


@pytest.mark.parametrize("page", FOUND)
def test_commands_parse(page):
    whole = [(where, words) for where, words in FOUND[page] if not is_mention(words)]
    assert [(where, words, why) for where, words in whole if (why := complaint(words)) is not None] == []


@pytest.mark.parametrize("page", FOUND)
def test_commands_that_are_only_mentioned_exist(page):
    commands = next(a.choices for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for where, words in FOUND[page]:
        name, *rest = words.replace("...", "").split()
        assert name == "COMMAND" or name in commands, where
        if is_mention(words) and name not in ("train", "feedback", "COMMAND"):
            options = [word for word in rest if word.startswith("--")]
            assert [option for option in options if option not in commands[name]._option_string_actions] == [], where


def is_mention(words: str) -> bool:
    """A name in a sentence, such as ``tokenflex convert``, or with something left out: no line to be typed."""
    return "..." in words or words.startswith("COMMAND") or len(words.split()) == 1 or words in PARTIAL


PARTIAL = {"evaluate --settings", "hosts --write", "plugins --write"}
"""Lines that stand for their flag."""


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("evaluate my-model --nonsense 3", "--nonsense"),
        ("evaluate my-model --dtype float8", "invalid choice"),
        ("teach my-model", "invalid choice"),
        ("train recipe.yaml --num_train_epoch 2", "num_train_epoch"),
        ("train recipe.yaml --num_train_epochs 2", None),
        ("profile my-model --batch 1 8", None),
    ],
)
def test_what_is_wrong_is_found(words, why):
    found = complaint(words)
    assert (found is None) if why is None else (why in (found or ""))
