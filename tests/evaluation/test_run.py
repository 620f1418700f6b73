"""The pass: complete after any interruption, the same over any number of processes, refused if it is another's."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest
import torch

import tokenflex
from tests.conftest import image
from tests.evaluation.conftest import ROWS
from tests.evaluation.test_questions import as_file
from tests.killed import killed_at_renaming
from tokenflex.errors import ConfigError, DataError
from tokenflex.evaluation import answering
from tokenflex.evaluation.questions import Questions, read
from tokenflex.evaluation.records import AnswerWriter, Evaluation, Record
from tokenflex.evaluation.run import evaluate
from tokenflex.evaluation.settings import parse
from tokenflex.testing.tiny_hosts import tiny_llava_next_processor
from tokenflex.training.fingerprint import of_processor

SETTINGS = ["levels", "router", "router@ratio=0.3", "random", "scaler:stride:1"]
FEW = ["level:0", "level:4", "router", "scaler:stride:1"]
COUNT = len(ROWS)


def answered(flex, processor, folder, *, questions=None, settings=SETTINGS, metric="exact-match", **given):
    questions = questions or Questions(ROWS)
    given = {"batch_size": 2, "max_new_tokens": 3} | given
    return evaluate(flex, processor, questions, metric, parse(flex, settings), folder, **given)


def own_answers(flex, processor, folder):
    """The rows with the finest level's answers as references, so that some scores are 1."""
    found = answered(flex, processor, folder, settings=["level:-1"])
    return [{**row, "answer": found.records["level:4"][i].answer} for i, row in enumerate(ROWS)]


def test_records_hold_what_the_model_does_one_by_one(still, processor, tmp_path):
    rows = own_answers(still, processor, tmp_path / "a")
    found = answered(still, processor, tmp_path / "b", questions=Questions(rows))
    assert list(found.records) == [
        *(f"level:{i}" for i in range(5)), "router", "router@ratio=0.3", "random", "scaler:stride:1"
    ]  # fmt: skip
    assert {len(records) for records in found.records.values()} == {COUNT}
    for i, row in enumerate(rows):
        text = f"user : <image> {row['question']} assistant : "
        inputs = processor(images=row["image"], text=text, return_tensors="pt")
        for level in range(5):
            (decision,) = still.decide(**inputs, level=level)
            record = found.records[f"level:{level}"][i]
            assert (record.levels, record.tokens, record.of) == ([level], decision.tokens, decision.of)
            ids = still.generate(**inputs, level=level, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
            (answer,) = processor.batch_decode(ids, skip_special_tokens=True)
            assert record.answer == answer.strip()
            assert record.score == float(answer.strip() == row["answer"])
        (routed,) = still.decide(**inputs)
        assert found.records["router"][i].levels == [routed.level]
        (capped,) = still.decide(**inputs, budget=tokenflex.Budget(ratio=0.3))
        assert found.records["router@ratio=0.3"][i].tokens == capped.tokens
        assert found.records["router"][i].id == f"q{i}"
    assert all(record.score == 1.0 for record in found.records["level:4"].values())
    assert any(record.score == 0.0 for record in found.records["level:0"].values())
    assert any(found.records["scaler:stride:1"][i].answer != found.records["level:1"][i].answer for i in range(COUNT))


@pytest.mark.parametrize("call", [0, 5, 9, 14])
def test_stopped_in_the_middle_it_goes_on_and_ends_the_same(still, processor, tmp_path, monkeypatch, call):
    whole = answered(still, processor, tmp_path / "whole", settings=FEW)
    seen, real = [0], type(still).generate

    def failing(self, *args, **kwargs):
        seen[0] += 1
        if seen[0] == call + 1:
            raise RuntimeError("the power failed")
        return real(self, *args, **kwargs)

    monkeypatch.setattr("tokenflex.evaluation.run.SHARD_SIZE", 10)
    monkeypatch.setattr(type(still), "generate", failing)
    with pytest.raises(RuntimeError, match="the power failed"):
        answered(still, processor, tmp_path / "s", settings=FEW)
    done = sum(len(records) for records in Evaluation(tmp_path / "s").records.values())
    assert done == (16 if call >= 8 else 0)  # a part holds two whole batches
    told = []
    again = answered(still, processor, tmp_path / "s", settings=FEW, begun=lambda *counts: told.append(counts))
    assert told == [(done, 4 * COUNT)]
    assert again.records == whole.records
    rows = [row for path in (tmp_path / "s").glob("part-*") for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 4 * COUNT


@pytest.mark.parametrize(("call", "after"), [(0, False), (0, True), (1, False), (1, True), (2, False), (3, True)])
def test_killed_at_a_file_s_renaming_nothing_is_lost_or_doubled(still, processor, tmp_path, monkeypatch, call, after):

    def write():
        torch.set_num_threads(1)
        monkeypatch.setattr("tokenflex.evaluation.run.SHARD_SIZE", 6)
        answered(still, processor, tmp_path / "s", settings=["level:0", "router", "level:4"])

    killed_at_renaming(write, call, after=after)
    again = answered(still, processor, tmp_path / "s", settings=["level:0", "router", "level:4"])
    whole = answered(still, processor, tmp_path / "w", settings=["level:0", "router", "level:4"])
    assert again.records == whole.records
    assert [shown.question for shown in again.samples] == [shown.question for shown in whole.samples]
    rows = [row for path in (tmp_path / "s").glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 3 * COUNT


def test_two_processes_make_the_same_table_as_one(still, processor, tmp_path):
    def shares(folder, *processes):
        return [answered(still, processor, tmp_path / folder, settings=FEW, process=one) for one in processes]

    (whole,) = shares("whole", (0, 1))
    first, second = shares("s", (1, 2), (0, 2))
    assert first.missing(["router"])["router"] == 4  # batches 0 and 2 of 2, 2, 2, 1
    assert second.missing() == {}
    assert second.records == whole.records
    assert shares("t", (2, 3), (1, 3), (0, 3))[-1].records == whole.records
    assert shares("u", (4, 5))[0].missing(["router"])["router"] == COUNT


def test_settings_may_be_added_and_nothing_is_asked_twice(still, processor, tmp_path, monkeypatch):
    answered(still, processor, tmp_path, settings=["level:0"])
    asked, real = [], answering.Batch.answers

    def counting(self, setting, places, *rest):
        asked.extend((setting.name, place) for place in places)
        return real(self, setting, places, *rest)

    monkeypatch.setattr(answering.Batch, "answers", counting)
    found = answered(still, processor, tmp_path, settings=["level:0", "router"], batch_size=3)
    assert sorted(asked) == [("router", place) for place in range(COUNT)]
    assert list(found.records) == ["level:0", "router"]
    asked.clear()
    answered(still, processor, tmp_path, settings=["level:0", "router"])
    assert asked == []


def test_a_tokenizer_s_last_call_is_no_part_of_its_fingerprint():
    made = tiny_llava_next_processor()
    fresh = of_processor(made)
    made.tokenizer(["w1", "w1 w2"], padding=True, padding_side="left", truncation=True, max_length=3)
    before = made.tokenizer.backend_tokenizer.to_str()
    assert of_processor(made) == fresh
    assert made.tokenizer.backend_tokenizer.to_str() == before


def test_two_evaluations_into_one_folder_take_turns(still, processor, tmp_path):
    """The second one comes while the first one is in the middle: it finds everything answered."""
    middle, waits, told = threading.Event(), threading.Event(), []

    def tick(more):
        middle.set()
        assert waits.wait(60)

    def again(*counts):
        told.append(counts)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(answered, still, processor, tmp_path, settings=["level:0"], tick=tick)
        assert middle.wait(60)
        second = answered(still, processor, tmp_path, settings=["level:0"], waiting=waits.set, begun=again)
        assert second.records == first.result().records
    assert second.missing() == {}
    assert told == [(COUNT, COUNT)]


def test_answers_that_vanish_meanwhile_are_noticed(still, processor, tmp_path, monkeypatch):
    """As when another machine, which knows nothing of the lock, replaces a part."""
    write = AnswerWriter.write

    def written(self, records):
        write(self, records)
        (self.folder / "part-00000-00000.parquet").unlink()

    monkeypatch.setattr(AnswerWriter, "write", written)
    with pytest.raises(DataError, match=r"level:0 lacks 7\); another machine may have written"):
        answered(still, processor, tmp_path, settings=["level:0"])


def test_doubled_rows_count_once(still, processor, tmp_path):
    found = answered(still, processor, tmp_path, settings=["level:0"])
    AnswerWriter(tmp_path, 7).write([Record(2, "q2", "level:0", "other", 1.0, [0], 1, 1)])
    assert Evaluation(tmp_path).records == found.records


def test_a_mismatch_says_what_differs(fresh, processor, tmp_path):
    flex = fresh()
    answered(flex, processor, tmp_path, settings=["level:0"])
    other, router = fresh(), fresh(seed=1)
    with torch.no_grad():
        next(other.host.parameters()).add_(1.0)
    changes = {
        r"something else: host\.weights: '\w+' stored, '\w+' now\. Go back to that, or choose another --out":
            {"flex": other},
        r"else: router\.weights": {"flex": router},
        r"else: scaler\.config\.windows": {
            "flex": fresh(scaler=tokenflex.scalers.get("average-pool").Config(windows=((4, 4), (2, 4), (2, 2), (1, 2))))
        },
        r"else: data\.rows: 7 stored, 6 now; data\.content": {"questions": Questions(ROWS, limit=6)},
        r"else: data\.content": {"questions": Questions([*ROWS[1:], ROWS[0]])},
        r"else: suffix: '' stored, 'w3' now": {"questions": Questions(ROWS, suffix="w3")},
        r"else: metric: 'exact-match' stored, 'anls' now": {"metric": "anls"},
        r"else: max_new_tokens: 3 stored, 4 now": {"max_new_tokens": 4},
        r"else: processor": {"processor": tiny_llava_next_processor(("w99",))},
    }  # fmt: skip
    for message, change in changes.items():
        given = {"flex": flex, "processor": processor} | change
        with pytest.raises(ConfigError, match=message):
            answered(given.pop("flex"), given.pop("processor"), tmp_path, settings=["level:0"], **given)


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "folder"])
def test_every_format_gives_the_same_answers(still, processor, tmp_path, kind):
    questions = read(as_file(kind, tmp_path), image_folder=tmp_path)
    found = answered(still, processor, tmp_path / "o", questions=questions, settings=["level:2", "router"])
    plain = answered(still, processor, tmp_path / "p", settings=["level:2", "router"])
    assert found.records == plain.records


MIXED = [
    {"images": [image(0), image(1)], "question": "w1 <image> w2 <image>", "answer": "w3"},
    {"question": "w4 w5", "answer": "w6"},
    {"image": image(2), "question": "w7", "answer": ["w8"]},
    {"images": [], "question": "w9 w10 w11", "answers": ["w12"]},
]


def test_several_images_and_none(still, processor, tmp_path):
    found = answered(still, processor, tmp_path, questions=Questions(MIXED), batch_size=4)
    one, none, single, empty = (found.records["level:1"][i] for i in range(4))
    assert (one.levels, none.levels, single.levels, empty.levels) == ([1, 1], [], [1], [])
    assert none.tokens == none.of == empty.tokens == 0
    assert one.of > single.of > single.tokens > 0
    alone = answered(still, processor, tmp_path / "alone", questions=Questions(MIXED[:1]), settings=["level:1"])
    assert alone.records["level:1"][0] == one
    plain = processor(text="user : w4 w5 assistant : ", return_tensors="pt")
    ids = still.host.generate(**plain, max_new_tokens=3)[:, plain["input_ids"].shape[1] :]
    assert none.answer == processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


def test_metrics_see_all_rows_before_any_is_answered(still, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(type(still), "generate", lambda *a, **k: pytest.fail("the model ran"))
    with pytest.raises(DataError, match="usually ten; 1 given"):
        answered(still, processor, tmp_path, metric="vqa")
    assert not (tmp_path / "manifest.json").exists()


def test_refusals(still, processor, tmp_path):
    with pytest.raises(ConfigError, match="batch_size=0 must be 1 or more"):
        answered(still, processor, tmp_path, batch_size=0)
    with pytest.raises(ConfigError, match="max_new_tokens=0 must be 1 or more"):
        answered(still, processor, tmp_path, max_new_tokens=0)
    with pytest.raises(ConfigError, match="process 2 of 2 isn't there"):
        answered(still, processor, tmp_path, process=(2, 2))
    with pytest.raises(ConfigError, match=r"has no manifest\.json, so no evaluation"):
        Evaluation(tmp_path / "nothing")
    answered(still, processor, tmp_path, settings=["level:0"])
    (tmp_path / "manifest.json").write_text('{"format": 9}')
    with pytest.raises(ConfigError, match="format 9 isn't known"):
        Evaluation(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="isn't valid JSON"):
        Evaluation(tmp_path)
