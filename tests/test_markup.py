"""Strings from anywhere stay text in Markdown, read back by a Markdown parser of its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tokenflex.evaluation.report import evaluation_markdown
from tokenflex.markup import code, escaped

READ = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = [
    "a|b", "![x](http://evil/x.png)", "<script>alert(1)</script>", "`code`", "**bold**", "_em_ and snake_case",
    "~~gone~~", "# title", "1. list", "- item", "back\\slash", "two\nlines", "&lt;b&gt; &copy;", "[a]: http://x",
    "| --- |", "=", "---", "+ x", "## x", "x\x00y", "0.25", "-0.25", "2)",
]  # fmt: skip
TEXT = st.sampled_from(HOSTILE) | st.text(st.characters(codec="utf-8"), max_size=30)


def tidy(text):
    return " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())


def texts(source):
    """What every block of text says, which must hold no markup."""
    found = []
    for token in READ.parse(source):
        if token.type == "inline":
            assert {child.type for child in token.children} <= {"text"}, token.children
            found.append("".join(child.content for child in token.children))
    return found


@given(TEXT)
def test_a_paragraph_reads_as_it_was_given(text):
    assert texts(escaped(text)) == ([tidy(text)] if tidy(text) else [])


@given(st.lists(TEXT, min_size=2, max_size=4))
def test_a_row_has_its_cells(cells):
    rows = ["| " + " | ".join(map(escaped, row)) + " |" for row in (["h"] * len(cells), cells)]
    ruler = "|" + "---|" * len(cells)
    assert texts("\n".join([rows[0], ruler, rows[1]])) == ["h"] * len(cells) + [tidy(cell) for cell in cells]


@pytest.mark.parametrize("text", HOSTILE)
def test_inline_code_ends_where_it_begins(text):
    rows = "\n".join(["| a | b |", "|---|---|", f"| {code(text)} | x |"])
    cells = [token for token in READ.parse(rows) if token.type == "inline"]
    assert len(cells) == 4
    assert {child.type for child in cells[2].children} <= {"code_inline"}


def test_names_and_kinds_of_an_evaluation_stay_text():
    entry = {"group": "level", "score": 0.5, "score_ci95": [0.1, 0.9], "tokens": 3.0, "share": 1.0,
             "by_kind": {kind: {"score": 0.5} for kind in HOSTILE}}  # fmt: skip
    summary = {"settings": dict.fromkeys(HOSTILE, entry), "shuffled": {}, "oracle": None, "samples": 2, "levels": 1,
               "kinds": dict.fromkeys(HOSTILE, 2), "model": "![x](http://evil)", "host": "<b>", "data": "a|b",
               "metric": "vqa", "max_new_tokens": 4}  # fmt: skip
    found = [token for token in READ.parse(evaluation_markdown(summary)) if token.type == "inline"]
    assert {child.type for token in found for child in token.children} <= {"text", "softbreak"}
    said = ["".join(child.content for child in token.children) for token in found]
    for text in HOSTILE:
        assert said.count(tidy(text)) == 2
        assert f"{tidy(text)} (2)" in said
