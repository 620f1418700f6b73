"""The two-stage form offline: fronts make requests, an engine answers them as the whole model does."""

import io

import pyarrow as pa
import pytest

from tokenflex.serving.actors import Answers, Engine, Requests

pytest.importorskip("vllm")


def rows(served):
    def encoded(index):
        written = io.BytesIO()
        served.image(index).save(written, format="PNG")
        return {"bytes": written.getvalue(), "path": None}

    asked = [{"id": i, "images": [encoded(i)], "question": f"w{i} w{i + 1}"} for i in range(4)]
    two = {"id": 4, "images": [encoded(5), encoded(6)], "question": "w7"}
    bad = {"id": 5, "images": [{"bytes": b"no picture", "path": None}], "question": "w7"}
    return pa.Table.from_pylist([*asked, two, bad, {"id": 6, "images": [], "question": "w8 w9"}])


def test_an_engine_answers_as_the_whole_model(llava_next, tmp_path):
    llava_next.flex.save_pretrained(tmp_path)
    llava_next.processor.save_pretrained(tmp_path)
    table = rows(llava_next)
    engine = Engine(str(llava_next.folder), max_new_tokens=6, dtype="float32", enforce_eager=True, max_model_len=1024)
    for choice in ({}, {"level": 1}, {"budget": 0.4}):
        wanted = Answers(str(tmp_path), max_new_tokens=6, **choice)(table).to_pylist()
        found = engine(Requests(str(tmp_path), **choice)(table)).to_pylist()
        for row, other in zip(found, wanted, strict=True):
            errors = row.pop("error"), other.pop("error")
            assert [error is not None for error in errors] == [row["id"] == 5] * 2
            assert row == other
