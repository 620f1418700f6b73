"""The quickstart's page, made of stored results and made-up answers: what it opens with, shows and says of itself."""

import re

import numpy as np
import pytest
from PIL import Image

from tests.pages.test_hostile import HOSTILE, only_own_script
from tokenflex.contracts import Grid
from tokenflex.images import decode
from tokenflex.markup import readable
from tokenflex.ops.pooling import PYRAMID
from tokenflex.quickstart import evaluate, page
from tokenflex.quickstart.evaluate import GradedAnswers, Results
from tokenflex.quickstart.images import SENTENCES, exam, scene_in_words

COUNT = 90
TOKENS = (4, 8, 14, 28, 52)
MADE = {"command": "tokenflex quickstart", "date": "2026-01-02", "device": "cpu", "hardware": "a processor, 2 cores",
        "threads": 1, "tokenflex": "0.1", "torch": "2.9", "transformers": "5", "python": "3.11"}  # fmt: skip


def answered(questions, level, right):
    """Right answers where ``right`` says so, and a hostile string elsewhere."""
    texts = tuple(q.answer if right[i] else HOSTILE[i % len(HOSTILE)] for i, (_, q) in enumerate(questions))
    levels = np.full(COUNT, level)
    return GradedAnswers(texts, right, np.array(TOKENS)[levels], levels, np.ones(COUNT), np.ones(COUNT))


@pytest.fixture(scope="module")
def questions():
    return exam(0, "test", COUNT)


@pytest.fixture(scope="module")
def results(questions):
    """Coarse levels answer coarse questions, the finest one all but three, and the router all but one more."""
    coarse = np.array([not question.fine for _, question in questions])
    whole = np.ones(COUNT, bool)
    whole[[0, 1, 2]] = False
    routed = whole.copy()
    routed[80] = False
    levels = [answered(questions, level, coarse) for level in range(4)] + [answered(questions, 4, whole)]
    router = answered(questions, 0, routed)
    router = GradedAnswers(
        router.texts, routed, np.array(TOKENS)[4 * ~coarse], 4 * ~coarse, router.passes, router.tower
    )
    return Results(levels, {"router": router}, {})


@pytest.fixture(scope="module")
def result(questions, results):
    asked = {"host": "llava-next", "seed": 3, "levels_per_step": "all", "router_rows": "all", "device": "cpu"}
    more = {"questions": COUNT, "fine_share": 1 / 3, "seconds": {"images": 1.5, "stage <1>": 20.0}}
    return {**asked, **more, "made": MADE, **evaluate.compare(results, questions, 0)}


def text_of(result, questions, results):
    return page.quickstart_html(result, questions, results.levels[-1], results.routers["router"], page.pooled(PYRAMID))


@pytest.fixture(scope="module")
def text(result, questions, results):
    return text_of(result, questions, results)


def test_differences_are_paired_and_have_intervals(result):
    router, finest, coarsest = result["router"], result["levels"][-1], result["levels"][0]
    assert router["minus_finest"] == pytest.approx(-1 / COUNT, abs=1e-6)
    low, high = router["minus_finest_ci95"]
    assert -0.1 < low <= -1 / COUNT <= high <= 0
    assert finest["minus_finest"] == 0
    assert coarsest["minus_finest_ci95"][1] < 0
    assert router["accuracy_ci95"][0] < router["accuracy"] < router["accuracy_ci95"][1]
    assert "minus_finest" not in result["oracle"]


def test_the_page_asks_nobody_and_hostile_answers_stay_text(text):
    shown = only_own_script(text)
    flat = " ".join(shown.text.split())
    told = [string for i, string in enumerate(HOSTILE) if i in (0, 1, 2)]
    assert all(" ".join(readable(string).split()) in flat for string in told)
    assert "stage <1>" in flat


def test_the_opening_sentence_is_first_and_how_it_was_made_follows_the_plot(text):
    order = [text.index(part) for part in ("<h1>", '<figure class="plot twice"', '<dl class="made">', "<table")]
    assert order == sorted(order)
    assert re.search(
        r"<h1>\w[^<]* accuracy[^<]* for 38 % of the visual tokens: difference to always-finest -0\.011 ", text
    )
    assert "a processor, 2 cores, 1 thread; device cpu" in text
    assert "3, of data, weights and training; also of the 2000 bootstrap draws" in text
    assert "not known" not in text


def test_a_result_of_an_older_version_says_what_is_not_known(result, questions, results):
    def older(entry):
        return {key: value for key, value in entry.items() if not key.endswith("ci95") and key != "minus_finest"}

    found = {key: older(value) if isinstance(value, dict) else value for key, value in result.items() if key != "made"}
    found["levels"] = [older(level) for level in result["levels"]]
    text = text_of(found, questions, results)
    only_own_script(text)
    assert text.count("not known: this was not recorded") == 4
    assert "(no interval, 90 questions)" in text
    assert "bootstrap draws" not in text


def test_questions_are_sentences_and_say_how_they_were_asked(questions, results, text):
    asked = {question.question for _, question in questions}
    assert asked <= set(SENTENCES)
    cards = page.cards(questions, results.levels[-1], results.routers["router"], page.pooled(PYRAMID))
    for card in cards:
        assert card.question.endswith("?")
        assert f"asked as: {next(a for a, s in SENTENCES.items() if s == card.question)}" in card.notes
    assert text.count('class="card"') == len(cards)


def test_wrong_answers_are_shown_besides_the_first_of_each_kind(questions, results):
    router = results.routers["router"]
    cards = page.cards(questions, results.levels[-1], router, page.pooled(PYRAMID))
    assert sum(card.verdict == "wrong" for card in cards) == 4  # all that there are
    assert len(cards) == len({(card.question, card.answer, card.images[0].content) for card in cards})
    (wrong,) = [card for card in cards if card.answer == router.texts[80] and card.verdict == "wrong"]
    assert any(f"expected: {questions[80][1].answer}; the finest level answers:" in note for note in wrong.notes)


def test_images_are_as_large_as_they_are_and_described(questions, results):
    cards = page.cards(questions, results.levels[-1], results.routers["router"], page.pooled(PYRAMID))
    drawn = questions[0][0]
    (image,) = cards[0].images
    assert decode(image.content).tobytes() == drawn.image.tobytes()
    assert (image.width, image.height) == drawn.image.size == (128, 64)
    assert image.alt.casefold().startswith(scene_in_words(drawn).casefold())
    assert "Chosen: level 4, 52 of 52 visual tokens" in image.alt
    assert (image.overlay.rows, image.overlay.cols) == (4, 8)
    coarse = next(card for card in cards if card.levels == (0,))
    assert (coarse.images[0].overlay.rows, coarse.images[0].overlay.cols) == (1, 2)


def test_a_description_names_what_there_is(questions):
    for drawn, question in questions:
        told = scene_in_words(drawn)
        if question.kind in ("photo", "wash", "digit", "ink"):
            assert question.answer in told
        assert ("no digit" in told) == (not (drawn.cells[..., 0] < 10).any())


def test_sizes_of_the_image_are_drawn_as_they_were_encoded():
    image, overlay = page.resized([Grid(1, 2), Grid(4, 8)])(Image.new("RGB", (128, 64)), 0)
    assert image.size == (32, 16)
    assert (overlay.rows, overlay.cols) == (1, 2)


def test_every_column_is_explained_and_the_accuracy_comes_first(text):
    heads = re.findall(r"<button type=\"button\">([^<]+)</button>", text[: text.index("</thead>")])
    assert heads[:3] == ["setting", "accuracy", "visual tokens"]
    told = re.findall(
        r"<dt>([^<]+)</dt><dd>[^<]+</dd>", text[text.index('<dl class="columns">') : text.index("<table")]
    )
    assert told == heads
