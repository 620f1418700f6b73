"""Tables, the gallery, and how it was made, as markup; in a browser they sort and filter."""

import re
from dataclasses import replace

import pytest

from tests.evaluation.tables import made
from tests.pages.conftest import SETTINGS
from tests.pages.test_hostile import HOSTILE, only_own_script
from tests.profiling.test_report import made as profiled
from tokenflex.errors import DataError, InputError
from tokenflex.evaluation.records import AnswerWriter, Evaluation
from tokenflex.evaluation.report import report
from tokenflex.markup import readable
from tokenflex.pages import Cell, Column, Gallery, Overlay, Row, Table, how_made, rendering
from tokenflex.pages.gallery import Card
from tokenflex.profiling.page import profile_html, sentence


def test_heads_can_be_clicked_are_reached_by_keyboard_and_explained(text):
    heads = re.findall(r"<thead><tr>(.*?)</tr></thead>", text)
    assert len(heads) == 3
    for row in heads:
        for cell in re.findall(r"<th [^>]*>.*?</th>", row):
            assert re.match(r'<th scope="col" aria-sort="none"><button type="button">.+</button></th>', cell)
    assert text.count('<table class="sortable"') == 3
    explained = re.findall(r"<div><dt>([^<]+)</dt><dd>([^<]+)</dd></div>", text[text.index('<dl class="columns">') :])
    assert [head for head, _ in explained] == [
        "setting", "score", "95 %", "tokens", "of finest", "against finest", "regret", "tokens too many"
    ]  # fmt: skip
    assert "title=" not in text  # nothing that only a mouse finds
    assert text.index('<dl class="columns">') < text.index("<table")


def test_the_page_opens_with_a_sentence_then_the_plot_then_how_it_was_made(text):
    order = [text.index(part) for part in ("<h1>", '<figure class="plot', '<dl class="made">', "<table")]
    assert order == sorted(order)
    assert re.search(
        r"<h1>A lower score for 62 % of the visual tokens: difference [^<]*\(95 % interval, 4 questions\)\.</h1>", text
    )


def test_both_themes_are_there(text):
    assert '<meta name="color-scheme" content="light dark">' in text
    assert "@media (prefers-color-scheme: dark){:root{--ink:" in text


def test_cards_say_what_they_are_filtered_by(text):
    cards = re.findall(r'<article class="card" data-verdict="(\w+)" data-kind="([^"]*)" data-level="([^"]*)">', text)
    assert sorted((verdict, level) for verdict, _, level in cards) == [
        ("partly", "1"), ("right", "0"), ("right", "1"), ("wrong", "0")
    ]  # fmt: skip
    choices = re.findall(r'<select data-filter="(\w+)">(.*?)</select>', text)
    assert [name for name, _ in choices] == ["verdict", "kind", "level"]
    assert re.findall(r">([^<]+)</option>", choices[0][1]) == ["all", "wrong (1)", "partly right (1)", "right (2)"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in choices[1][1]


def test_images_are_lazy_and_say_what_is_seen_and_chosen(text):
    images = re.findall(r"<img [^>]*>", text)
    assert len(images) == 4
    for image in images:
        assert ' loading="lazy"' in image
        assert re.search(r'width="\d+" height="\d+"', image)
        assert re.search(r'alt="Image that is asked about: w\d\. Chosen: level [01], \d of 8 visual tokens', image)


def test_how_it_was_made_is_kept_with_the_answers(tmp_path):
    folder = made(tmp_path, SETTINGS)
    report(folder, resamples=5)
    assert (folder / "report.html").read_text(encoding="utf-8").count("not known: this was not recorded") == 4
    (part,) = folder.glob("part-*.parquet")
    records = [one for by_place in Evaluation(folder).records.values() for one in by_place.values()]
    part.unlink()
    told = {"command": "tokenflex evaluate x", "date": "2026-01-02", "hardware": "a processor, 4 cores", "threads": 2,
            "device": "cpu", "torch": "2.9", "tokenflex": "0.1", "transformers": "5", "python": "3.11"}  # fmt: skip
    AnswerWriter(folder, 0, told).write(records[:5])
    AnswerWriter(folder, 0, {**told, "threads": 1}).write(records[5:])
    assert Evaluation(folder).made == [told, {**told, "threads": 1}]
    report(folder, resamples=5)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<code>tokenflex evaluate x</code>" in text
    assert "a processor, 4 cores, 2 threads; device cpu" in text
    assert "a processor, 4 cores, 1 thread; device cpu" in text
    assert "tokenflex 0.1, torch 2.9, transformers 5, python 3.11" in text
    assert "Group 2 of the answers" in text
    assert "not known" not in text


@pytest.mark.parametrize("told", ["{", "[]", '{"command": [1]}', '{"command": null}'])
def test_what_cannot_say_how_answers_were_made_is_refused(tmp_path, told):
    folder = made(tmp_path, {"level:0": ([1], [2])})
    writer = AnswerWriter(folder, 1)
    writer._made = {"made": told}
    writer.write(list(Evaluation(folder).records["level:0"].values()))
    with pytest.raises(DataError, match="made"):
        Evaluation(folder)


def test_facts_that_nobody_kept_are_said_to_be_unknown():
    assert dict(how_made(None, {"seed": "3"}))["seed"] == "3"
    assert all(value.startswith("not known") for term, value in how_made(None) if term != "seed")
    assert dict(how_made({"command": ""}))["command"] == "called from Python"


def test_lines_part_kept_tokens_and_dropped_ones_are_dark():
    overlay = Overlay(2, 3, [0, 0, 1, 0, -1, -1])
    assert overlay.lines == "M0 0h3v2h-3z" + "M1 1h2" + "M1 1v1" + "M2 0v1"
    assert overlay.dark == "M1 1h2v1h-2z"
    assert overlay.dropped == pytest.approx(1 / 3)
    assert Overlay.grid(1, 2).lines == "M0 0h2v1h-2zM1 0v1"
    assert Overlay.grid(1, 2).dark == ""


def test_a_table_needs_a_cell_for_every_column():
    with pytest.raises(InputError, match="a row of the table 't' has 1 cells for 2 columns"):
        Table("t", (Column("a"), Column("b")), (Row((Cell("x"),)),))


def test_filters_are_offered_where_they_tell_cards_apart():
    def card(kind, levels, score):
        return Card("q", "a", kind, levels, score, ())

    same = Gallery((card("", (1,), 1.0), card("", (1,), 1.0)))
    assert [(one.name, one.options) for one in same.filters] == [
        ("verdict", (("wrong", "wrong (0)"), ("right", "right (2)")))
    ]
    other = Gallery((card("b", (10, 2), 0.0), card("a", (1,), 0.5)))
    assert [one.name for one in other.filters] == ["verdict", "kind", "level"]
    assert [value for value, _ in other.filters[2].options] == ["1", "2", "10"]


def test_the_profile_s_page_has_a_image_of_every_case_and_asks_nobody():
    page = only_own_script(profile_html(profiled()))
    assert "Routing pays in both cases measured, where it drops more than 2 % of the visual tokens." in page.text
    assert page.text.count("pays from 9 of 576 tokens dropped on") == 2
    assert "Mind the gap." in page.text
    assert "what the decision costs" in page.text
    assert "Routing pays in none of the 2 cases measured" not in page.text
    for term in ("date", "2026-01-02", "a GPU, 4 threads; device cuda:0", "20 per setting after 3", "a cat; 'what?'"):
        assert term in page.text


def test_a_profile_of_hostile_strings_runs_only_our_own_script():
    found = profiled()
    (batch,) = found.batches
    vanilla, every = batch.settings[0], " ".join(HOSTILE)
    named = replace(batch, settings=(*batch.settings, *(replace(vanilla, name=string) for string in HOSTILE)))
    page = only_own_script(
        profile_html(replace(found, request=every, command=every, warnings=(*HOSTILE,), batches=(named,)))
    )
    flat = " ".join(page.text.split())
    for string in HOSTILE:
        assert flat.count(" ".join(readable(string).split())) >= 5, string  # two tables, command, request, warning


def test_a_profile_says_where_routing_does_not_pay():
    found = profiled()
    (batch,) = found.batches
    one, other = batch.break_even
    lost, open_one = replace(one, decision=1.0), replace(other, slope_low=-1.0)

    def told(*evens):
        return sentence(replace(found, batches=(replace(batch, break_even=evens),)))

    assert told(one).startswith("Routing pays when it drops more than 9 of 576 visual tokens (batch of 2, 1 token per")
    assert told(lost).startswith("Routing does not pay here (batch of 2, 1 token per answer): the decision takes 1e+03")
    assert told(open_one).startswith("The runs don't settle whether routing pays here")
    assert told(lost, lost) == "Routing pays in none of the 2 cases measured."
    assert told(lost, open_one) == "Routing pays in none of the 2 cases measured; 1 of them the runs don't settle."
    assert told(one, lost).startswith(
        "Routing pays in 1 of the 2 cases measured (batch of 2, 1 token per answer), where"
    )


def test_the_policy_lets_our_script_run_and_no_other():
    assert re.fullmatch(
        r"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-[\w+/=]+'; base-uri 'none'; "
        r"form-action 'none'",
        rendering.policy(),
    )
