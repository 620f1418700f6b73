"""The page in a browser: upload, ask, move the slider; the numbers are the library's own."""

import re
from collections import Counter

import pytest

import tokenflex
from tests.browser import BROWSER, MISSING, started
from tests.conftest import image as shown
from tests.demo.test_handling import bytes_of
from tokenflex.demo.samples import Example

GET = "pip install "
pytest.importorskip("gradio", reason=f'the page needs gradio: {GET}"tokenflex[demo]"')
served_page = pytest.importorskip("tokenflex.demo.page")
playwright = pytest.importorskip("playwright.sync_api", reason=f"a browser is driven by playwright: {GET}playwright")

SECONDS = 60
NUMBER = re.compile(r"^\d+(\.\d)?$")
HOSTILE_NAME = "<img src=x onerror=alert(1)>.png"
HOSTILE = "<b>w1</b> ${alert(1)} {{7*7}} <script>alert(2)</script>"
expect = playwright.expect
pytestmark = pytest.mark.skipif(BROWSER is None, reason=MISSING)


@pytest.fixture(scope="module")
def address(model):
    examples = [Example("one", shown(0), ("w1 w2", "w3")), Example("two", shown(2), ("w4", "w5"))]
    with served_page.running(model, examples, host="127.0.0.1", port=0, share=False, runs=1) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with started(playwright) as browser:
        yield browser


@pytest.fixture
def visit(browser, address):
    """Opens the page; at the end nobody else was asked, and no script failed or was smuggled in."""
    expect.set_options(timeout=1000 * SECONDS)
    faults, opened = Counter(), []

    def open_page(**options):
        page = browser.new_page(**options)
        opened.append(page)
        page.on("request", lambda one: faults.update([one.url] if not _own(one.url, address) else []))
        page.on("pageerror", lambda error: faults.update([str(error)]))
        page.on("dialog", lambda dialog: (faults.update([dialog.message]), dialog.dismiss()))
        page.goto(address)
        return page

    yield open_page
    for page in opened:
        page.close()
    assert not faults


def _own(url, address):
    return url.startswith((address, "data:", "blob:"))


def decided(model, image, text, **choice):
    """As anyone would decide by hand."""
    inputs = model.processor(images=image, text=f"user : <image> {text} assistant :", return_tensors="pt")
    return model.flex.decide(**inputs, **choice)[0]


def shows(page, decision, scope="#answer"):
    """Wait until the page has the decision's numbers."""
    expect(page.locator(f"{scope} [data-tf=tokens]")).to_have_text(str(decision.tokens))
    expect(page.locator(f"{scope} [data-tf=of]")).to_have_text(str(decision.of))
    expect(page.locator(f"{scope} [data-tf=level]")).to_have_text(str(decision.level))
    scores = [f"{score:+.2f}" for score in decision.scores.tolist()]
    expect(page.locator(f"{scope} [data-tf=score]")).to_have_text(scores)


def upload(page, content, name=HOSTILE_NAME, kind="image/png"):
    page.locator("input[type=file]").first.set_input_files({"name": name, "mimeType": kind, "buffer": content})


def test_upload_ask_and_move_the_slider(model, visit):
    page, image = visit(), shown(1)
    shows(page, decided(model, shown(0), "w1 w2"))  # the first example is answered at once
    page.get_by_label("Question").fill("w7 w8")
    upload(page, bytes_of(image))
    expect(page.locator("#answer .tf-question")).to_have_text("w7 w8")
    shows(page, decided(model, image, "w7 w8"))
    page.get_by_label("Question").fill(HOSTILE)
    page.locator("#ask").click()
    expect(page.locator("#answer .tf-question")).to_have_text(HOSTILE)
    shows(page, decided(model, image, HOSTILE))
    seen = set()
    for key, share in (("Home", 0.05), ("ArrowRight", 0.1), ("End", None)):
        page.locator("#budget input[type=range]").press(key)
        budget = None if share is None else tokenflex.Budget(ratio=share)
        decision = decided(model, image, HOSTILE, budget=budget)
        limit = "No budget" if share is None else f"Within a budget of {100 * share:.0f}\u00a0%"
        expect(page.locator("#answer")).to_contain_text(limit)
        shows(page, decision)
        expect(page.locator("#answer [data-tf=ms]")).to_have_text(NUMBER)
        expect(page.locator("#answer [data-tf=ms-finest]")).to_have_text(NUMBER)
        expect(page.locator("#answer [data-tf=n]")).to_have_text("1")
        seen.add((decision.tokens, page.locator("#answer .tf-image").get_attribute("src")))
    assert len({tokens for tokens, _ in seen}) == len({source for _, source in seen}) > 1


def test_samples_bring_their_questions(model, visit):
    page = visit()
    shows(page, decided(model, shown(0), "w1 w2"))
    page.locator("#samples button").nth(1).click()
    expect(page.locator("#answer .tf-question")).to_have_text("w4")
    expect(page.get_by_label("Question")).to_have_value("w4")
    shows(page, decided(model, shown(2), "w4"))
    page.locator("#tries").get_by_text("w5", exact=True).click()
    expect(page.locator("#answer .tf-question")).to_have_text("w5")
    shows(page, decided(model, shown(2), "w5"))


def test_all_levels_and_a_conversation(model, visit):
    page, image = visit(), shown(0)
    page.get_by_role("tab", name="All levels").click()
    page.locator("#every").click()
    tokens = [str(decided(model, image, "w1 w2", level=level).tokens) for level in range(model.levels)]
    expect(page.locator("#levels [data-tf=tokens]")).to_have_text(tokens)
    page.get_by_role("tab", name="Conversation").click()
    history, expected = "", []
    for place, question in enumerate(("w6", HOSTILE)):
        page.locator("#following textarea").fill(question)
        page.locator("#send").click()
        expect(page.locator("#talk .tf-question")).to_have_count(place + 1)
        expected.append(str(decided(model, image, f"{history}{question}").tokens))
        expect(page.locator("#talk [data-tf=tokens]")).to_have_text(expected)
        answer = page.locator("#talk [data-tf=answer]").nth(place).inner_text()
        history = f"{question} assistant : {'' if answer == '(nothing)' else answer} </s> user : "
    expect(page.locator("#talk .tf-question")).to_have_text(["w6", HOSTILE])
    page.locator("#anew").click()
    expect(page.locator("#talk")).to_contain_text("Nothing was asked")


def test_errors_are_messages_on_the_page(model, visit):
    page = visit()
    shows(page, decided(model, shown(0), "w1 w2"))
    upload(page, b"<script>alert(1)</script>")
    expect(page.locator("#problem")).to_contain_text("can't be read")
    page.get_by_label("Question").fill("w1 <image>")
    page.locator("#ask").click()
    expect(page.locator("#answer [role=alert]")).to_contain_text("stands for an image")
    page.get_by_label("Question").fill("w1 w2")
    page.locator("#ask").click()
    shows(page, decided(model, shown(0), "w1 w2"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_on_a_phone(model, visit, scheme):
    page = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    shows(page, decided(model, shown(0), "w1 w2"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    cut = page.locator("#answer :is(p, th, td, span)").evaluate_all(
        "all => all.filter(one => one.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert cut == 0
