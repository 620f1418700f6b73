"""Folders that the versions before `tokenflex.run_folder` wrote, in ``older/``, are read, and gone on with."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tokenflex.errors import ConfigError
from tokenflex.evaluation.records import AnswerWriter, Evaluation, Record, begin_evaluation
from tokenflex.run_folder import MANIFEST, sealed
from tokenflex.training import FeedbackStore
from tokenflex.training.store import FeedbackWriter, ScoredSample, begin_store

OLDER = Path(__file__).parent / "older"


@pytest.fixture
def older(tmp_path):
    """A copy, to be written to."""
    return shutil.copytree(OLDER, tmp_path / "older")


def manifest_of(folder):
    """What its run was begun with."""
    told = json.loads((folder / MANIFEST).read_text())
    return {key: value for key, value in told.items() if key not in ("format", "digest")}


def test_a_store_is_read():
    """Three shards of two processes; row 1 has no answer, and row 2 no image."""
    store = FeedbackStore(OLDER / "store")
    store.require_complete()
    assert store.ids.tolist() == [0, 1, 2]
    assert [store.feedback(place).tolist() for place in (0, 2)] == [[1.0, 0.5], [3.0, 2.5]]
    assert store.feedback(1).isnan().all()
    assert store.answer_tokens.tolist() == [2, 0, 2]
    assert store.visual_tokens.tolist() == [[1, 2]] * 3
    for place, images in enumerate((1, 1, 0)):
        seen, words = store.inputs(place)
        assert len(seen) == images
        assert all(torch.equal(image.features, torch.arange(8.0).view(1, 2, 4) + place) for image in seen)
        assert torch.equal(words.embeddings, torch.full((place + 1, 4), float(place)))
    assert torch.equal(store.scaler_weights()["weight"], torch.arange(3.0))


def test_an_evaluation_is_read():
    found = Evaluation(OLDER / "evaluation")
    found.require_complete()
    assert [(shown.question.text, shown.images) for shown in found.samples] == [("w0?", (b"image",)), ("w1?", ())]
    assert found.made == [{"command": "tokenflex evaluate", "threads": 1}, None]
    scores = {name: [rows[place].score for place in (0, 1)] for name, rows in found.records.items()}
    assert scores == {"level:0": [1.0, 0.0], "level:1": [0.0, 1.0]}


def test_a_store_is_gone_on_with(older):
    folder = older / "store"
    (folder / "part-00000-00001.parquet").unlink()
    begin_store(folder, manifest_of(folder), {"weight": torch.arange(3.0)})
    FeedbackWriter(folder, 0).write([ScoredSample(0, [9.0, 9.0], 2, [1, 2])])
    assert (folder / "part-00000-00001.parquet").is_file()
    assert FeedbackStore(folder).feedback(0).tolist() == [9.0, 9.0]
    with pytest.raises(ConfigError, match="was scored with something else: levels: 2 stored, 3 now"):
        begin_store(folder, {**manifest_of(folder), "levels": 3}, {})


def test_an_evaluation_is_gone_on_with(older):
    folder = older / "evaluation"
    begin_evaluation(folder, {**manifest_of(folder), "model": "another name"}, lambda: pytest.fail("begun already"))
    AnswerWriter(folder, 0).write([Record(0, "q0", "router", "w0", 1.0, [1], 8, 8)])
    assert (folder / "part-00000-00001.parquet").is_file()
    found = Evaluation(folder)
    assert found.missing() == {"router": 1}
    assert found.records["level:0"] == Evaluation(OLDER / "evaluation").records["level:0"]


@pytest.mark.parametrize("name", ["store", "evaluation"])
def test_manifests_are_written_as_they_were(name):
    told = json.loads((OLDER / name / MANIFEST).read_text())
    del told["digest"]
    assert sealed.manifest_text(told) == (OLDER / name / MANIFEST).read_text()
