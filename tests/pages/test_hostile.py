"""Whole pages made of hostile strings: they stay text, and no page asks anybody else for anything."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import tokenflex
from tests.conftest import image
from tokenflex import cards
from tokenflex.evaluation import drawing
from tokenflex.evaluation.questions import Question
from tokenflex.evaluation.records import AnswerWriter, Evaluation, Record, Shown, begin_evaluation
from tokenflex.evaluation.report import report
from tokenflex.markup import readable
from tokenflex.pages import rendering

READ = MarkdownIt("commonmark").enable(["table", "strikethrough"])
TEMPLATES = sorted(Path(tokenflex.__file__).parent.rglob("*.jinja"))
HOSTILE = [
    "<script>alert(1)</script>", "a|b", "`code` ```", "[x](javascript:alert(1))", "![x](http://evil/x.png)",
    "two\n\n# lines", "\u202egnp.exe\u202c", "\u2067isolated", '"><img src=//evil onerror=alert(1)>',
    "' onmouseover='alert(1)", "{{ 7 * 7 }}{% raw %}", "</style><style>@import url(http://evil)</style>",
    "<svg onload=alert(1)>", "&lt;b&gt;", "$\\frac{", "<!--", "]]>", "http://evil/", "\x00\x1b[31m",
    "<base href=//evil>", "</script><script>alert(1)</script>", "'+alert(1)+'", "--x: red; }", "a\tb ' \"c\" =d",
]  # fmt: skip
CARRIERS = {"src", "href", "xlink:href", "srcset", "action", "formaction", "data", "poster", "background", "cite"}
ASKING = {"iframe", "object", "embed", "link", "base", "form", "video", "audio", "foreignobject"}
NAMED = {"alt", "aria-label", "data-kind", "value"}
"""Attributes that hold strings from outside as text."""


class Page(HTMLParser):
    """Tags, attributes, text, style sheets and scripts of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self.styles, self.scripts = set(), [], "", [], []
        self._inside = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in ("style", "script"):
            (self.styles if tag == "style" else self.scripts).append("")

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside in ("style", "script"):
            (self.styles if self._inside == "style" else self.scripts)[-1] += data
        else:
            self.text += data


def asks_nobody(text):
    """A piece of a page, of which nothing is fetched and nothing runs."""
    page = Page(text)
    assert (page.scripts, page.styles) == ([], [])
    return _asks_nobody(page)


def only_own_script(text):
    """A whole page, of which nothing is fetched, and only our own script may run."""
    page = Page(text)
    assert (page.scripts, page.styles) == ([rendering.script()], [rendering.style()])
    policies = [("http-equiv", "Content-Security-Policy"), ("content", rendering.policy())]
    metas = [(name, value) for tag, name, value in page.attributes if tag == "meta"]
    assert metas[1:3] == policies  # behind the encoding, before all that it rules
    assert sum(name == "http-equiv" for name, _ in metas) == 1
    return _asks_nobody(page)


def _asks_nobody(page):
    assert not page.tags & ASKING
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in CARRIERS:
            assert value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#")), (tag, name, value[:80])
            assert "//" not in value.partition("base64,")[0]
        for inner in re.findall(r"url\(([^)]*)\)", value):
            assert name in NAMED or inner.strip("'\"").startswith("#"), (tag, name, value[:80])
    return page


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report whose every string is hostile."""
    target = tmp_path_factory.mktemp("hostile")
    finger = {"host": {"model_type": HOSTILE[0]}, "metric": HOSTILE[14], "max_new_tokens": 4}
    manifest = {"model": HOSTILE[8], "data": HOSTILE[4], "levels": 2, "fingerprint": finger}
    made = {"command": HOSTILE[-4], "date": HOSTILE[0], "hardware": HOSTILE[8], "torch": HOSTILE[12]}
    shown, seen = drawing.thumbnail(image(0).resize((9, 8))), []
    for place, text in enumerate(HOSTILE):
        question = Question(place, text, text, text, (text,))
        seen.append(Shown(question, (shown,)))
    begin_evaluation(target, manifest, lambda: seen)
    line = [text for text in HOSTILE if text.isprintable()]
    names = [
        "level:0",
        "level:1",
        "router",
        *(f"router@{t}" for t in line),
        *(f"scaler:{t.replace(':', '')}:0" for t in line),
    ]
    records = [
        Record(place, text, name, text, place % 2, [0], 3, 8) for name in names for place, text in enumerate(HOSTILE)
    ]
    AnswerWriter(target, 0, made).write(records)
    report(target, resamples=20)
    return target


def test_a_report_of_hostile_strings_asks_nobody_and_shows_them_as_text(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = only_own_script(text)
    flat = " ".join(page.text.split())
    for string in HOSTILE:
        assert " ".join(readable(string).split()) in flat, string
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", text)
    assert " 49" not in page.text
    values = [value for _, name, value in page.attributes if name in ("data-kind", "value")]
    for string in HOSTILE:
        assert readable(string) in values, string  # of cards, and of the choice that filters them
        assert any(readable(string) in value for _, name, value in page.attributes if name == "alt"), string


def test_a_report_in_markdown_has_no_markup_of_others(folder):
    inline = [
        token for token in READ.parse((folder / "report.md").read_text(encoding="utf-8")) if token.type == "inline"
    ]
    assert {child.type for token in inline for child in token.children} <= {"text", "softbreak"}
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", (folder / "report.md").read_text(encoding="utf-8"))
    assert Evaluation(folder).records["level:0"][0].answer == HOSTILE[0]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("made", [cards.of_parts, cards.of_model])
def test_cards_of_hostile_strings(text, made):
    part = {"name": text, "provider": text, "version": text, "config": {text: text}}
    host = {"name": text, "revision": text, "model_type": text, "grid": [2, 2], "options": {}}
    card = made({"host": host, "parts": {"router": part, "voter": part}}, [1, 4])
    body = card.split("\n---\n", 1)[1]
    tokens = READ.parse(body)
    children = {child.type for token in tokens if token.type == "inline" for child in token.children}
    assert children <= {"text", "softbreak", "code_inline"}
    assert [token.content for token in tokens if token.type == "html_block"] == [cards.MARK + "\n"]
    assert sum(token.type == "tr_open" for token in tokens) == 3
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", card)
    assert card.split("\n---\n", 1)[0].count("\n") == 5  # nothing was added to the lines that hubs read


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.parent.name)
def test_templates_ask_nobody(path):
    source = path.read_text(encoding="utf-8").replace("<script>{{ script }}</script>", "")
    assert not re.search(r"(?:src|href)=\"(?!\{\{)|https?://|@import|url\(|<script|<link|<iframe", source)
    assert not re.search(r"\|\s*safe|Markup|autoescape", source)
    assert not re.search(r"[\w-]+=\{\{", source)  # values of attributes stand in quotes


def test_script_and_style_ask_nobody_and_make_no_markup():
    assert not re.search(r"https?:|//[^ ]|fetch|XMLHttp|WebSocket|import|eval|Function\(|innerHTML|outerHTML|write|"
                         r"insertAdjacent|sendBeacon|location|cookie|</", rendering.script())  # fmt: skip
    assert not re.search(r"@import|url\(|expression|</", rendering.style())


def test_what_may_be_read():
    assert readable("a\u202eb\x00c\nd\u05d0\u200f") == "abc\nd\u05d0\u200f"
    assert readable(3) == 3
