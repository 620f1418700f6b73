"""Rows become samples, and bad rows are named."""

import io
import json

import pytest

from tests.conftest import picture
from tests.training.conftest import ROWS, turns
from tokenflex.errors import DataError
from tokenflex.training import ChatDataset, read_rows


def texts(sample):
    return [[part.get("text", part["type"]) for part in message["content"]] for message in sample.messages]


def test_a_picture_without_a_place_goes_first(rows):
    sample = ChatDataset(rows)[0]
    assert sample.name == "row 0 (id 'a')"
    assert texts(sample) == [["image", "w1 w2"], ["w3 w4"]]


def test_marks_give_each_picture_its_place(rows):
    sample = ChatDataset(rows)[3]
    assert texts(sample) == [["image", "w1", "image", "w2"], ["w15"]]
    assert [image.size for image in sample.images] == [picture(2).size, picture(3).size]


def test_text_only_rows_and_part_lists(rows):
    assert ChatDataset(rows)[2].images == ()
    content = [{"type": "image"}, {"type": "text", "text": "w1"}]
    row = {"image": picture(0), "messages": [{"role": "user", "content": content}, *turns("", "w2")[1:]]}
    assert texts(ChatDataset([row])[0]) == [["image", "w1"], ["w2"]]


def llava_rows(folder):
    for index in (0, 1):
        picture(index).save(folder / f"{index}.png")
    talk = [{"from": "human", "value": "<image>\nw1 w2"}, {"from": "gpt", "value": "w3"}]
    return [
        {"id": "x1", "image": "0.png", "conversations": talk},
        {"id": "x2", "image": ["0.png", "1.png"], "conversations": [{"from": "human", "value": "w1"}, talk[1]]},
        {"id": "x3", "conversations": [{"from": "human", "value": "w4"}, talk[1]]},
    ]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_llava_files(tmp_path, kind):
    rows = llava_rows(tmp_path)
    path = tmp_path / f"rows.{kind}"
    path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    dataset = ChatDataset(read_rows(path), image_folder=tmp_path)
    assert [len(dataset[i].images) for i in range(3)] == [1, 2, 0]
    assert texts(dataset[0]) == [["image", "w1 w2"], ["w3"]]
    assert texts(dataset[1]) == [["image", "image", "w1"], ["w3"]]
    assert dataset[0].images[0].tobytes() == picture(0).tobytes()


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_datasets_rows(tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    buffer = io.BytesIO()
    picture(1).save(buffer, format="PNG")
    saved = datasets.Dataset.from_list([{"images": [{"bytes": buffer.getvalue()}], "messages": turns("w1", "w2")}])
    path = tmp_path / ("rows.parquet" if kind == "parquet" else "rows")
    saved.to_parquet(str(path)) if kind == "parquet" else saved.save_to_disk(str(path))
    sample = ChatDataset(read_rows(path))[0]
    assert sample.images[0].tobytes() == picture(1).tobytes()


def bad_rows(folder):
    whole = io.BytesIO()
    picture(0).resize((400, 400)).save(whole, format="JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[:2000])
    (folder / "text.png").write_text("no picture")
    fine = turns("w1", "w2")
    return {
        "truncated": ({"id": 7, "image": "truncated.jpg", "messages": fine}, r"\(id 7\).*truncated.jpg.*can't be read"),
        "no picture": ({"image": "text.png", "messages": fine}, "text.png.*can't be read"),
        "missing": ({"image": "gone.png", "messages": fine}, "gone.png.*can't be read"),
        "bytes": ({"image": {"bytes": b"zzz"}, "messages": fine}, "can't be read"),
        "too few": ({"image": picture(0), "messages": turns("<image> <image>", "w2")}, "1 picture.* and 2 place"),
        "no answer": ({"image": picture(0), "messages": turns("w1")}, "has no answer"),
        "empty answer": ({"image": picture(0), "messages": turns("w1", "")}, "has no answer"),
        "role": ({"messages": [{"role": "narrator", "content": "x"}]}, "role 'narrator'; known are"),
        "part": ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "neither an image nor a text"),
        "content": ({"messages": [{"role": "user", "content": 3}]}, "expected text or a list"),
        "keys": ({"image": picture(0), "text": "x"}, "neither 'messages' nor 'conversations'"),
    }


BAD = ("truncated", "no picture", "missing", "bytes", "too few", "no answer", "empty answer", "role", "part")


@pytest.mark.parametrize("name", [*BAD, "content", "keys"])
def test_bad_rows_are_named_or_skipped(tmp_path, name, caplog):
    row, message = bad_rows(tmp_path)[name]
    with pytest.raises(DataError, match=f"^row 0.*{message}"):
        ChatDataset([row, ROWS[0]], tmp_path)[0]
    dataset = ChatDataset([row, ROWS[0]], tmp_path, on_bad_sample="skip")
    assert dataset[0].name == "row 1 (id 'a')"
    assert list(dataset.skipped) == ["0"]
    assert "skipped a row (1 so far)" in caplog.text
    dataset[0]
    assert caplog.text.count("skipped a row") == 1


def test_nothing_usable_is_an_error():
    with pytest.raises(DataError, match="none of the 2 rows can be used"):
        ChatDataset([{}, {}], on_bad_sample="skip")[1]
    with pytest.raises(DataError, match="no rows"):
        ChatDataset([])
    with pytest.raises(DataError, match="use 'raise' or 'skip'"):
        ChatDataset(ROWS, on_bad_sample="ignore")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.json", "{", "isn't valid JSON"),
        ("rows.json", "{}", "expected a list of rows"),
        ("rows.jsonl", '{"a": 1}\n{', "line 2 isn't valid JSON"),
        ("rows.csv", "a,b", "unknown format '.csv'"),
        ("gone.json", None, "doesn't exist"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)
