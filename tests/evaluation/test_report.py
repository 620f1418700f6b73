"""What is drawn, and a page that needs nothing but itself."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import tokenflex
from tests.conftest import image
from tests.evaluation.conftest import ROWS
from tests.evaluation.tables import made
from tokenflex.errors import DataError
from tokenflex.evaluation import drawing
from tokenflex.evaluation.questions import Questions
from tokenflex.evaluation.report import evaluation_markdown, report, setting_lines
from tokenflex.evaluation.run import evaluate
from tokenflex.evaluation.settings import parse
from tokenflex.images import decode

TABLE = {
    **{f"level:{i}": ([i > 0, i > 1], [1 + i, 1 + i]) for i in range(3)},
    "router": ([1, 0], [2, 1], [[1], [0]]),
    "router@ratio=0.3": ([0, 0], [1, 1], [[0], [0]]),
    "random": ([1, 1], [3, 3], [[2], [2]]),
    "scaler:stride:0": ([0, 0], [1, 1]),
}


class Page(HTMLParser):
    """Collects tags, attributes and text; complains about what isn't closed."""

    VOID = {"meta", "img", "br", "use", "link", "hr", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, still, processor):
    """An evaluation from end to end, with hostile text in it."""
    folder = tmp_path_factory.mktemp("evaluated")
    rows = [{**row, "kind": f"<b>{row['kind']}</b>"} for row in ROWS]
    settings = parse(still, ["levels", "router", "router@ratio=0.3", "random", "scaler:random"])
    evaluate(still, processor, Questions(rows), "anls", settings, folder, batch_size=3, max_new_tokens=2)
    return folder, report(folder, resamples=20)


def test_the_page_refers_to_nothing_outside(evaluated):
    text = (evaluated[0] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    for tag, key, value in page.attributes:
        if key in ("src", "href", "xlink:href", "data", "srcset", "action", "poster"):
            assert value.startswith(("data:", "#")), (tag, key, value)
        assert key in ("xmlns", "xmlns:xlink") or "://" not in value, (tag, key, value)
    assert not re.search(r"<(script [^>]|link|iframe|object)|@import|url\((?!#)", text)
    assert [text.count(f'<svg class="{size}" role="img"') for size in ("wide", "narrow")] == [1, 1]


def test_the_page_shows_settings_and_images_and_escapes_what_it_is_given(evaluated):
    folder, summary = evaluated
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<b>even</b>" not in text
    assert "&lt;b&gt;even&lt;/b&gt;" in text
    for line in setting_lines(summary):
        assert re.search(rf'<th scope="row" data-value="\d+.0">{re.escape(line.name)}</th>', text)
    assert text.count('class="card"') == len(ROWS)
    assert text.count("data:image/png;base64,") == len(ROWS)
    for label in (
        "fixed levels",
        "router under budgets, from left to right: ratio=0.3",
        "oracle",
        "its choices shuffled",
        "random levels",
    ):
        assert label in text


def test_summary_and_markdown_say_the_same(evaluated):
    folder, summary = evaluated
    assert json.loads((folder / "summary.json").read_text()) == summary
    text = (folder / "report.md").read_text()
    assert text == evaluation_markdown(summary)
    for name, entry in summary["settings"].items():
        assert re.search(rf"\| {re.escape(name)} \| {entry['score']:.3f} \| .* \| {entry['tokens']:.1f} \|", text)
    assert "| oracle |" in text
    assert "## Score by kind" in text


def test_writing_it_again_changes_nothing(evaluated):
    folder, summary = evaluated
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert report(folder, resamples=20) == summary
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_no_kinds_no_images_no_router(tmp_path):
    summary = report(made(tmp_path, {"level:0": ([1, 0], [1, 1])}, levels=3), resamples=5)
    assert [line.name for line in setting_lines(summary)] == ["level:0"]
    text = (tmp_path / "report.html").read_text()
    assert "Score by kind" not in text
    assert "Some questions" not in text
    assert "Levels chosen" not in text
    assert Page(text).open == []


def test_every_kind_of_line_is_there(tmp_path):
    summary = report(made(tmp_path, TABLE, kinds=["fine", ""]), resamples=5)
    assert [line.name for line in setting_lines(summary)] == [
        "level:0", "level:1", "level:2", "router", "router@ratio=0.3", "random", "scaler:stride:0",
        "router, shuffled", "router@ratio=0.3, shuffled", "oracle",
    ]  # fmt: skip
    by_name = {line.name: line for line in setting_lines(summary)}
    assert by_name["router"].cells == (
        "router", "0.500", by_name["router"].cells[2], "1.5", "19 %", "-0.500", "0.000", "0.0"
    )  # fmt: skip
    assert by_name["router"].chosen == (1, 1, 0)
    assert by_name["scaler:stride:0"].cells[-2:] == ("", "")
    assert summary["kinds"] == {"fine": 1}


def test_unfinished_evaluations_get_no_report(tmp_path):
    folder = made(tmp_path, TABLE)
    (folder / "part-00000-00000.parquet").unlink()
    with pytest.raises(DataError, match="isn't complete: it has no answers"):
        report(folder)
    assert not (folder / "report.html").exists()


def test_cells_are_what_the_scaler_does(still, processor):
    inputs = dict(processor(images=[image(0)], text="w1 <image>", return_tensors="pt"))
    for level, window in enumerate(((4, 4), (2, 4), (2, 2), (1, 2), (1, 1))):
        (found,) = drawing.cells(still, inputs, [level])
        assert (found.rows, found.cols) == (8, 8)
        expected = [(r // window[0]) * (8 // window[1]) + c // window[1] for r in range(8) for c in range(8)]
        assert found.into == expected
    random = tokenflex.wrap(still.host, scaler="random").eval()
    (found,) = drawing.cells(random, inputs, [1])
    assert found.into.count(-1) == 64 - 8


def test_lines_part_what_was_kept_and_shade_what_was_dropped():
    white = drawing.thumbnail(Image.new("RGB", (8, 8), (200, 100, 50)))
    kept = drawing.Cells(2, 2, [0, 0, -1, 1])
    image = np.asarray(drawing.with_kept_tokens(white, kept))
    assert image.shape == (480, 480, 3)
    plain, lit = (200, 100, 50), (255, 255, 255)
    assert tuple(image[100, 240]) == plain  # the upper two went into one token: no line between them
    assert tuple(image[360, 240]) == lit
    assert tuple(image[240, 100]) == lit
    assert image[360, 100].sum() < 200  # dropped
    assert tuple(image[360, 400]) == plain
    assert tuple(np.asarray(drawing.with_kept_tokens(white, None))[360, 240]) == plain


def test_images_of_the_gallery_keep_their_own_resolution():
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8))
    seen = drawing.seen(drawing.stored(photograph), drawing.Cells(1, 2, [0, -1]), "two cells")
    assert (seen.width, seen.height, seen.kind, seen.tiny) == (1200, 900, "image/jpeg", False)
    assert decode(seen.content).size == (1200, 900)
    assert (seen.overlay.dark, seen.overlay.dropped) == ("M1 0h1v1h-1z", 0.5)
    huge = drawing.seen(drawing.stored(Image.new("RGB", (4096, 100))), None, "")
    assert (huge.width, huge.height, decode(huge.content).size) == (2048, 50, (2048, 50))
    tiny = drawing.seen(drawing.stored(image(0)), None, "")
    assert decode(tiny.content).tobytes() == image(0).convert("RGB").tobytes()
    assert (tiny.kind, tiny.tiny) == ("image/png", True)


def test_thumbnails_are_small_and_small_ones_exact():
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8))
    small = drawing.with_kept_tokens(drawing.thumbnail(large), None)
    assert small.size == (480, 360)
    assert len(drawing.thumbnail(large)) < 200_000
    tiny = image(0)
    factor = 480 // max(tiny.size)
    assert (
        drawing.with_kept_tokens(drawing.thumbnail(tiny), None).resize(tiny.size, Image.Resampling.NEAREST).size
        == tiny.size
    )
    assert drawing.with_kept_tokens(drawing.thumbnail(tiny), None).size == (factor * tiny.width, factor * tiny.height)
