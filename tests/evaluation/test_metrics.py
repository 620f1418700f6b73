"""Metrics: worked values from their definitions, and what must hold for any answer."""

import builtins
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflex.errors import ConfigError, DataError
from tokenflex.evaluation import vqa
from tokenflex.evaluation.metrics import METRICS, find, identity, score

words = st.text(st.characters(codec="ascii", categories=("Lu", "Ll", "Nd", "Po", "Zs")), max_size=12)
answers = st.lists(words, min_size=4, max_size=10)


@pytest.mark.parametrize(
    ("metric", "answer", "references", "expected"),
    [
        ("exact-match", " A  Dog. ", ["cat", "a dog"], 1.0),
        ("exact-match", "dogs", ["dog"], 0.0),
        ("exact-match", "3.5", ["35"], 0.0),
        ("exact-match", "", ["dog"], 0.0),
        ("relaxed", "95", ["100"], 1.0),
        ("relaxed", "94.9", ["100"], 0.0),
        ("relaxed", "105.0", ["100"], 1.0),
        ("relaxed", "0.735", ["0.7"], 1.0),  # exactly 5 %, which binary fractions would miss
        ("relaxed", "-10.5", ["-10"], 1.0),
        ("relaxed", "10", ["-10"], 0.0),
        ("relaxed", "12 %", ["0.12"], 1.0),
        ("relaxed", "12", ["0.12"], 0.0),
        ("relaxed", "1,040", ["1000"], 1.0),
        ("relaxed", "0", ["0.0"], 1.0),
        ("relaxed", "0.01", ["0"], 0.0),
        ("relaxed", "Blue", ["blue"], 1.0),
        ("relaxed", "blue line", ["blue"], 0.0),
        ("relaxed", "about 100", ["100"], 0.0),
        ("anls", "kitten", ["sitting"], 1 - 3 / 7),
        ("anls", "abcd", ["abxy"], 0.0),  # half is right, which isn't above the threshold
        ("anls", "abc", ["abx"], 2 / 3),
        ("anls", "Hello  World", ["hello world"], 1.0),
        ("anls", "hello", ["world", "hella"], 0.8),
        ("anls", "", ["word"], 0.0),
        ("multiple-choice", "B", ["B", "a dog"], 1.0),
        ("multiple-choice", "(B)", ["B", "a dog"], 1.0),
        ("multiple-choice", "b", ["B", "a dog"], 1.0),
        ("multiple-choice", "B. a cat", ["B", "a dog"], 1.0),
        ("multiple-choice", "A: a dog", ["B", "a dog"], 0.0),
        ("multiple-choice", "A dog.", ["B", "a dog"], 1.0),
        ("multiple-choice", "A dog", ["A", "cat"], 0.0),  # an article, not a letter
        ("multiple-choice", "The answer is B", ["B"], 1.0),
        ("multiple-choice", "Answer: (C)", ["B"], 0.0),
        ("multiple-choice", "The answer is a dog", ["A"], 0.0),
        ("multiple-choice", "f(x)", ["A", "f(x)"], 1.0),
        ("multiple-choice", "", ["A"], 0.0),
        ("vqa", "2", ["two"] * 10, 1.0),
        ("vqa", "yes", ["yes"] * 2 + ["no"] * 8, (2 * (1 / 3) + 8 * (2 / 3)) / 10),  # = 0.6
        ("vqa", "yes", ["yes"] * 3 + ["no"] * 7, 0.9),
        ("vqa", "yes", ["yes"] * 4 + ["no"] * 6, 1.0),
        ("vqa", "yes", ["yes"] + ["no"] * 9, 0.3),
        ("vqa", "maybe", ["yes"] * 10, 0.0),
    ],
)  # fmt: skip
def test_worked_values(metric, answer, references, expected):
    assert METRICS[metric](answer, references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog.", "dog"),
        ("U.S.A.", "usa"),
        ("3.5", "3.5"),
        ("100,978", "100978"),
        ("red, blue", "red blue"),
        ("t-shirt", "t shirt"),
        ("dont know", "don't know"),
        ("it\u2019s", "it's"),
        ("girl's", "girl's"),
        ("2:50 pm!", "2:50 pm"),
        ("Two of an apple", "2 of apple"),
        ("none", "0"),
        ("snow_board", "snow board"),
        ("were well", "were well"),
    ],
)
def test_answers_of_the_challenge_are_normalised(text, expected):
    assert vqa.normalise(text) == expected
    assert vqa.normalise(expected) == expected


@settings(deadline=None)
@given(said=st.integers(0, 12), others=st.integers(0, 12))
def test_vqa_accuracy_is_the_mean_over_leaving_one_out(said, others):
    references = ["yes"] * said + [f"no{chr(97 + i)}" for i in range(others)]
    if len(references) < 4:
        with pytest.raises(DataError, match="at least 4"):
            vqa.accuracy("yes", references)
        return
    kept = [references[:i] + references[i + 1 :] for i in range(len(references))]
    expected = sum(min(one.count("yes") / 3, 1.0) for one in kept) / len(kept)
    assert vqa.accuracy("yes", references) == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None)
@given(answer=words, references=answers, extra=words)
def test_scores_are_shares_and_the_order_of_references_is_nothing(metric, answer, references, extra):
    function = METRICS[metric]
    first = function(answer, references)
    assert 0.0 <= first <= 1.0
    assert function(answer, references[::-1]) == pytest.approx(first)
    assert function(f" {answer.upper()}  ", references) == pytest.approx(function(answer.upper(), references))
    if metric != "vqa":
        assert function(answer, [*references, extra]) >= first


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None)
@given(answer=words, others=answers)
def test_a_reference_itself_is_right(metric, answer, others):
    assert METRICS[metric](answer, [*others, *[answer] * 4]) == 1.0


@settings(deadline=None)
@given(answer=words, other=words)
def test_relaxed_and_anls_never_refuse_what_matches_exactly(answer, other):
    if METRICS["exact-match"](answer, [other]):
        assert METRICS["relaxed"](answer, [other]) == 1.0


@settings(deadline=None)
@given(value=st.integers(-(10**6), 10**6), parts=st.integers(-500, 500))
def test_relaxed_numbers_are_right_up_to_a_twentieth(value, parts):
    answer = f"{value * (10_000 + parts)}"
    assert METRICS["relaxed"](answer, [str(value * 10_000)]) == 1.0
    assert METRICS["relaxed"](f"{value * (10_000 + 501)}", [str(value * 10_000)]) == float(value == 0)


def test_metrics_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "own_metrics.py").write_text(
        "def first_letter(answer, references):\n    return float(answer[:1] in {r[:1] for r in references})\n\n\n"
        "def percent(answer, references):\n    return 100\n\n\nNUMBER = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    metric = find("own_metrics:first_letter")
    assert score("own_metrics:first_letter", metric, "dog", ["deer"]) == 1.0
    assert identity("own_metrics:first_letter").startswith("own_metrics:first_letter ")
    assert identity("own_metrics:first_letter") != identity("own_metrics:percent")
    assert identity("anls") == "anls"
    with pytest.raises(ConfigError, match="gave 100 for 'dog'; a score must be a number from 0 to 1"):
        score("percent", find("own_metrics:percent"), "dog", ["dog"])
    with pytest.raises(ConfigError, match="is 3, not a function"):
        find("own_metrics:NUMBER")


def test_the_page_names_every_metric():
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| ", page, re.MULTILINE)
    assert set(METRICS) <= set(rows)


def test_refusals(monkeypatch):
    with pytest.raises(
        ConfigError, match=r"no metric is called 'bleu'; there are exact-match, vqa, .* module:function"
    ):
        find("bleu")
    with pytest.raises(ConfigError, match="can't be imported: ModuleNotFoundError"):
        find("no_such_module:f")
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("rapidfuzz"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs rapidfuzz: pip install 'tokenflex\[eval\]'"):
        METRICS["anls"]("a", ["b"])
