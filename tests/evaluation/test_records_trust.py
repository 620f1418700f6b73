"""An evaluation from anyone: what isn't as it was written, or can't be, is refused before anything is made of it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.evaluation.tables import made, unsealed
from tokenflex.errors import ConfigError, DataError
from tokenflex.evaluation.records import AnswerWriter, Evaluation, Record
from tokenflex.evaluation.report import report

PART, SAMPLES, MANIFEST = "part-00000-00000.parquet", "samples.parquet", "manifest.json"


@pytest.fixture
def folder(tmp_path):
    settings = {"level:0": ([1, 0, 1], [2, 2, 2]), "level:1": ([1, 1, 0], [8, 8, 8])}
    return made(tmp_path / "e", settings)


def rewritten(path, change, keep):
    """The table with its rows changed; with its digest, or in an evaluation of an older version, which has none."""
    if not keep:
        unsealed(path.parent)
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows = change(rows) or rows
    metadata = table.schema.metadata if keep else None
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema.with_metadata(metadata)), path)


def put(row, **values):
    return lambda rows: rows[row].update(values)


RECORDS = {
    "place 3; there are 3 questions": put(0, place=3),
    "place -1": put(0, place=-1),
    "has the id 'q1'; the question at its place has 'q0'": put(0, id="q1"),
    r"setting 'cheat' isn't one of level, router": put(0, setting="cheat"),
    r"setting 'level:\\n0' isn't one of": put(0, setting="level:\n0"),
    "setting .* isn't one of": put(0, setting="level:" + "1" * 5000),
    "has the score nan, expected 0 to 1": put(0, score=float("nan")),
    "has the score 3.0": put(0, score=3.0),
    r"has the levels \[7\]; there are 0 to 1": put(0, levels=[7]),
    "has -1 tokens of 8": put(0, tokens=-1),
    "has 0 passes": put(0, passes=0),
    "answers the same question in the same setting": lambda rows: [*rows, rows[0]],
    r"hold nulls": put(0, answer=None),
    r"lists in the column 'levels' hold nulls": put(0, levels=[None]),
    "cells isn't valid JSON": put(0, cells="{"),
    "cells: missing key": put(0, cells='[{"rows": 1}]'),
    r"into is \[0\], expected a whole number": put(0, cells='[{"rows": 1, "cols": 2, "into": [0]}]'),
    "cells: rows is 99999999": put(0, cells='[{"rows": 99999999, "cols": 2, "into": []}]'),
}


@pytest.mark.parametrize("message", RECORDS)
def test_answers_that_cannot_have_been_given(folder, message):
    rewritten(folder / PART, RECORDS[message], keep=False)
    with pytest.raises(DataError, match=message):
        Evaluation(folder)


CHANGES = {
    "another answer": put(0, answer="other"),
    "another score": put(0, score=0.0),
    "shuffled": lambda rows: rows[::-1],
    "dropped": lambda rows: rows[1:],
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("file", [PART, SAMPLES])
def test_changed_tables_are_told_by_their_digest(folder, name, file):
    if file == SAMPLES and "another" in name:
        rewritten(folder / file, put(0, question="other"), keep=True)
    else:
        rewritten(folder / file, CHANGES[name], keep=True)
    with pytest.raises(DataError, match=rf"{file}: its digest isn't that of its rows"):
        Evaluation(folder)


def test_a_table_that_lost_its_digest_is_refused(folder):
    table = pq.read_table(folder / PART)
    pq.write_table(table.replace_schema_metadata(None), folder / PART)
    with pytest.raises(DataError, match="has no digest of its rows, and was written with one"):
        Evaluation(folder)


def test_what_is_harmless_in_tables_without_digests(folder):
    whole = Evaluation(folder)
    rewritten(folder / PART, lambda rows: rows[::-1], keep=False)
    assert Evaluation(folder).records == whole.records
    rewritten(folder / PART, lambda rows: rows[1:], keep=False)
    with pytest.raises(DataError, match="level:1 lacks 1 of 3"):
        report(folder)


SHOWN = {
    "row 0 is of the question at place 2": lambda rows: rows[::-1],
    "has 0 questions": lambda rows: rows.clear(),
    "row 0 has no references": put(0, references=[]),
    "lists in the column 'references' hold nulls": put(0, references=[None]),
}


@pytest.mark.parametrize("message", SHOWN)
def test_questions_are_all_there_in_order(folder, message):
    rewritten(folder / SAMPLES, SHOWN[message], keep=False)
    with pytest.raises(DataError, match=message):
        Evaluation(folder)


def test_a_broken_image_names_its_question(folder):
    rewritten(folder / SAMPLES, put(1, images=[b"\x89PNG"]), keep=False)
    with pytest.raises(DataError, match="question 1: image 'bytes' can't be read"):
        report(folder, resamples=20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": "two"}, "levels is 'two', expected a whole number from 1"),
        ({"model": None}, "model is None, expected a text"),
        ({"fingerprint": {"host": {}, "metric": "vqa", "max_new_tokens": 4}}, r"host: missing key\(s\) \['model_type"),
        ({"more": 1}, r"unknown key\(s\) \['more'\]"),
    ],
)
def test_manifests_say_what_they_must(folder, change, message):
    told = json.loads((folder / MANIFEST).read_text()) | change
    (folder / MANIFEST).write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="its digest isn't that of what it says"):
        Evaluation(folder)
    del told["digest"]
    (folder / MANIFEST).write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=message):
        Evaluation(folder)


def test_an_evaluation_of_an_older_version_is_read(folder):
    whole = Evaluation(folder)
    unsealed(folder)
    table = pq.read_table(folder / PART).drop_columns(["passes", "wasted"]).replace_schema_metadata(None)
    pq.write_table(table, folder / PART)
    again = Evaluation(folder)
    assert again.records["level:0"][1].passes is None
    assert {name: len(rows) for name, rows in again.records.items()} == {
        name: len(rows) for name, rows in whole.records.items()
    }
    AnswerWriter(folder, 0).write([Record(0, "q0", "router", "x", 1.0, [0], 2, 8)])
    assert Evaluation(folder).records["router"][0].answer == "x"


@pytest.mark.parametrize("name", [PART, SAMPLES])
def test_bytes_that_are_no_parquet(folder, name):
    for content in (b"", b"PAR1", (folder / name).read_bytes()[:-9], b"\x80\x04]."):
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} can't be read as Parquet"):
            Evaluation(folder)
