"""A small part of every section, in processes of their own; ``just torture`` tries all of it."""

import importlib.util

import pytest

from tests.torture.__main__ import HEADER, MARKS, PAGE, SECTIONS, page, section
from tests.torture.outcome import Outcome


@pytest.mark.parametrize("name", SECTIONS)
def test_nothing_is_lost_doubled_wrong_or_crashed(name):
    outcomes = section(name, scale=0.02, seed=1)
    assert sum(outcome.times for outcome in outcomes) > 0
    assert [outcome for outcome in outcomes if not outcome.fine] == []


def test_the_page_has_a_table_of_every_section_and_what_was_amiss_is_explained():
    text = PAGE.read_text(encoding="utf-8")
    _, _, rest = text.partition(MARKS[0])
    body, closed, after = rest.partition(MARKS[1])
    explained = after.partition("## Found by this run, mended since")[2].partition("\n## ")[0]
    rows = [
        line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| ") and " --- " not in line
    ]
    counted = [row for row in rows if row[0] != HEADER[0]]
    assert closed
    assert len(counted) > len(SECTIONS)
    amiss = [row[0] for row in counted if row[3:7] != ["0"] * 4]
    assert [fault for fault in amiss if f"| {fault} | " not in explained] == []


def test_every_section_is_a_module():
    assert all(importlib.util.find_spec(f"tests.torture.{name}") for name in SECTIONS)


def test_what_is_amiss_shows():
    row = Outcome("Files", "flips", 1200, refused=1190, wrong=10)
    assert not row.fine
    assert "| flips | 1,200 | 1,190 | 0 | 0 | 10 | 0 |" in page([row], 1, 0, 60)
