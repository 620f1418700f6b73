import json

import pytest

from tokenflex.errors import ConfigError
from tokenflex_lmms_eval.answering import Answer
from tokenflex_lmms_eval.endings import Ending
from tokenflex_lmms_eval.records import place, record, write

ANSWER = Answer(Ending("ja ä", 3, "eos"), (1, 4), 30, 104, 41)


def test_one_line_per_answer(tmp_path):
    target = tmp_path / "new" / "run.jsonl"
    write(target, [record("t", 7, 0, ANSWER), record("t", 7, 1, ANSWER)])
    lines = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {
        "task": "t", "doc_id": 7, "repeat": 0, "answer": "ja ä", "levels": [1, 4], "visual_tokens": 30,
        "finest_tokens": 104, "input_tokens": 41, "output_tokens": 3, "stopped": "eos",
    }  # fmt: skip
    assert lines[1] == lines[0] | {"repeat": 1}


def test_the_file_is_there_in_full_or_not_at_all(tmp_path):
    def broken():
        yield record("t", 0, 0, ANSWER)
        raise RuntimeError("the disk is full")

    target = tmp_path / "run.jsonl"
    with pytest.raises(RuntimeError, match="the disk is full"):
        write(target, broken())
    assert list(tmp_path.iterdir()) == []
    write(target, [record("t", 0, 0, ANSWER)])
    with pytest.raises(RuntimeError, match="the disk is full"):
        write(target, broken())
    assert list(tmp_path.iterdir()) == [target]
    assert len(target.read_text().splitlines()) == 1


def test_every_process_has_a_file_of_its_own(tmp_path):
    target = tmp_path / "run.jsonl"
    assert place(target, 0, 1) == target
    assert [place(target, rank, 2).name for rank in (0, 1)] == ["run.0-of-2.jsonl", "run.1-of-2.jsonl"]


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "run.jsonl").touch()
    with pytest.raises(ConfigError, match="exists already; name another file"):
        place(tmp_path / "run.jsonl", 0, 1)
