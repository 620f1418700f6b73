"""Pages in a browser, opened from the disk: they sort, filter and fit."""

import pytest

from tests.browser import BROWSER, MISSING, started
from tests.pages.test_hostile import HOSTILE
from tests.profiling.test_report import made as profiled
from tokenflex.profiling.page import profile_html

playwright = pytest.importorskip(
    "playwright.sync_api", reason="a browser is driven by playwright: pip install playwright"
)
TEXT_SIZES = """
[...document.querySelectorAll('.plot svg text')].filter(one => one.getBoundingClientRect().width).map(one => {
  const m = one.getScreenCTM();
  return parseFloat(getComputedStyle(one).fontSize) * Math.sqrt(Math.abs(m.a * m.d - m.b * m.c));
})
"""
"""CSS pixels, as displayed."""
pytestmark = pytest.mark.skipif(BROWSER is None, reason=MISSING)


@pytest.fixture(scope="module")
def browser():
    with started(playwright) as browser:
        yield browser


@pytest.fixture
def visit(browser):
    """Opens a page; nothing else may be asked for, and no script may fail or be smuggled in."""
    faults = []

    def open_page(path, **options):
        page = browser.new_page(**options)
        page.on("request", lambda one: faults.extend([] if one.url.startswith(("file:", "data:")) else [one.url]))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.extend([said.text] if said.type == "error" else []))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        return page

    yield open_page
    assert faults == []


def test_tables_sort_by_mouse_and_keyboard(reported, visit):
    page = visit(reported / "report.html")
    table = page.locator("table").first

    def tokens():
        return [row.locator("td").nth(2).inner_text() for row in table.locator("tbody tr").all()]

    assert page.locator(".hint").first.is_visible()
    before = tokens()
    assert before == ["2.0", "8.0", "5.0", "5.0", "5.0"]
    head, first = table.locator("thead th").nth(3), table.locator("thead th").first
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert tokens() == ["2.0", "5.0", "5.0", "5.0", "8.0"]
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert tokens() == ["8.0", "5.0", "5.0", "5.0", "2.0"]
    first.locator("button").click()
    assert tokens() == before
    assert (first.get_attribute("aria-sort"), head.get_attribute("aria-sort")) == ("ascending", "none")


def test_the_gallery_filters(reported, visit):
    page = visit(reported / "report.html")

    def shown():
        return page.locator(".card:visible").count()

    assert shown() == 4
    page.select_option('select[data-filter="verdict"]', "wrong")
    assert shown() == 1
    assert page.locator(".filters output").inner_text() == "1 of 4 questions"
    page.select_option('select[data-filter="verdict"]', "")
    page.select_option('select[data-filter="kind"]', HOSTILE[0])
    assert shown() == 1
    page.select_option('select[data-filter="level"]', "0")
    assert shown() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_pages_fit_their_screens(reported, tmp_path, visit, width, scheme):
    (tmp_path / "profile.html").write_text(profile_html(profiled()), encoding="utf-8")
    for path in (reported / "report.html", tmp_path / "profile.html"):
        page = visit(path, viewport={"width": width, "height": 800}, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        sizes = page.evaluate(TEXT_SIZES)
        assert sizes
        assert min(sizes) >= 11
        assert page.evaluate("document.querySelector('table').rows[1].cells[1].getBoundingClientRect().right") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(11, 17, 32)"}[scheme]
