"""Rows become samples, and bad rows are named."""

import base64
import io
import itertools
import json
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import image as drawn
from tests.training.conftest import ROWS, turns
from tokenflex.errors import ConfigError, DataError
from tokenflex.training import ChatDataset, read_rows
from tokenflex.training.data import ROLES, read_sample
from tokenflex.training.fingerprint import of_data


def texts(sample):
    return [[part.get("text", part["type"]) for part in message["content"]] for message in sample.messages]


def test_a_image_without_a_place_goes_first(rows):
    sample = ChatDataset(rows)[0]
    assert sample.name == "row 0 (id 'a')"
    assert texts(sample) == [["image", "w1 w2"], ["w3 w4"]]


def test_marks_give_each_image_its_place(rows):
    sample = ChatDataset(rows)[3]
    assert texts(sample) == [["image", "w1", "image", "w2"], ["w15"]]
    assert [image.size for image in sample.images] == [drawn(2).size, drawn(3).size]


def test_text_only_rows_and_part_lists(rows):
    assert ChatDataset(rows)[2].images == ()
    content = [{"type": "image"}, {"type": "text", "text": "w1"}]
    row = {"image": drawn(0), "messages": [{"role": "user", "content": content}, *turns("", "w2")[1:]]}
    assert texts(ChatDataset([row])[0]) == [["image", "w1"], ["w2"]]


def llava_rows(folder):
    for index in (0, 1):
        drawn(index).save(folder / f"{index}.png")
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
    assert dataset[0].images[0].tobytes() == drawn(0).tobytes()


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_datasets_rows(tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    buffer = io.BytesIO()
    drawn(1).save(buffer, format="PNG")
    saved = datasets.Dataset.from_list([{"images": [{"bytes": buffer.getvalue()}], "messages": turns("w1", "w2")}])
    path = tmp_path / ("rows.parquet" if kind == "parquet" else "rows")
    saved.to_parquet(str(path)) if kind == "parquet" else saved.save_to_disk(str(path))
    sample = ChatDataset(read_rows(path))[0]
    assert sample.images[0].tobytes() == drawn(1).tobytes()


def png(index):
    buffer = io.BytesIO()
    drawn(index).save(buffer, format="PNG")
    return buffer.getvalue()


def asked(*content):
    """A conversation whose question has these parts."""
    return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "w2"}]


WORD, PLACE = {"type": "text", "text": "w1"}, {"type": "image"}


@pytest.mark.parametrize(
    "carried",
    [
        {"image": drawn(0)},
        {"image": png(0)},
        {"image": {"bytes": png(0), "path": None}},
        {"image": "0.png"},
        {"url": "0.png"},
        {"path": "0.png"},
        {"image": None, "url": None, "path": "0.png", "text": None},
        {"base64": base64.b64encode(png(0)).decode()},
        {"url": "data:image/png;base64," + base64.b64encode(png(0)).decode()},
        {"type": "image_url", "image_url": {"url": "0.png"}},
        {"type": "image_url", "image_url": "0.png"},
    ],
)
def test_images_inside_messages(carried, tmp_path):
    drawn(0).save(tmp_path / "0.png")
    sample = ChatDataset([{"messages": asked(WORD, {**PLACE, **carried}, WORD)}], tmp_path)[0]
    assert texts(sample) == [["w1", "image", "w1"], ["w2"]]
    assert [image.tobytes() for image in sample.images] == [drawn(0).tobytes()]
    assert sample.messages[0]["content"][1] == PLACE


def test_images_inside_messages_beside_those_of_the_row():
    one, two = {**PLACE, "image": drawn(0)}, {**PLACE, "image": drawn(2)}
    rows = [
        {"image": drawn(1), "messages": asked(one, WORD, PLACE, two)},
        {"image": [], "images": [drawn(1)], "messages": asked(PLACE, one)},
        {"images": [], "image": drawn(1), "messages": asked(one, PLACE)},
        {"image": drawn(1), "messages": asked(one, two)},
    ]
    dataset = ChatDataset(rows)
    assert [image.tobytes() for image in dataset[0].images] == [drawn(i).tobytes() for i in (0, 1, 2)]
    assert [image.tobytes() for image in dataset[1].images] == [drawn(i).tobytes() for i in (1, 0)]
    assert [image.tobytes() for image in dataset[2].images] == [drawn(i).tobytes() for i in (0, 1)]
    with pytest.raises(DataError, match=r"row 3 has 3 image.s. and 2 place"):
        dataset[3]


def test_images_are_upright_and_deep_greys_are_scaled(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 60)).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.full((4, 4), 127 * 257, np.uint16)).save(tmp_path / "deep.png")
    rows = [{"image": name, "messages": turns("w1", "w2")} for name in ("turned.jpg", "deep.png")]
    turned, deep = (ChatDataset(rows, tmp_path)[i].images[0] for i in (0, 1))
    assert turned.size == (60, 20)
    assert deep.getextrema() == ((127, 127),) * 3


def test_names_lead_out_of_no_image_folder(tmp_path):
    (tmp_path / "images").mkdir()
    drawn(0).save(tmp_path / "a.png")
    drawn(0).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "a.png")
    fine = turns("w1", "w2")
    names = ["../a.png", str(tmp_path / "a.png"), "link.png", {"bytes": None, "path": "../a.png"}, "a.png"]
    rows = [{"image": name, "messages": fine} for name in names]
    rows.append({"messages": asked({**PLACE, "path": "../a.png"})})
    dataset = ChatDataset(rows, tmp_path / "images", on_bad_sample="skip")
    assert dataset[0].name == dataset[5].name == "row 4"
    assert sorted(dataset.skipped) == ["0", "1", "2", "3", "5"]
    assert all("inside the folder" in reason for reason in dataset.skipped.values())
    assert ChatDataset(rows[1:2])[0].images[0].size == drawn(0).size


def test_json_lines_end_at_line_feeds_only(tmp_path):
    words = "w1\u2028w2\x85w3\u2029w4"
    rows = [{"messages": turns(words, "w2")}, {"messages": turns("w3", words)}]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes("\r\n".join(lines).encode())
    assert read_rows(path) == rows
    path.write_bytes(("\ufeff" + "\n\n".join(lines) + "\n").encode())
    assert read_rows(path) == rows


@pytest.mark.parametrize("place", ["image", "images", "messages"])
def test_datasets_whose_images_cannot_be_opened(tmp_path, place):
    """`datasets` would open them, and fail, before a row is there; and it would look for paths anywhere."""
    datasets = pytest.importorskip("datasets")
    drawn(0).save(tmp_path / "outside.png")
    stored = [{"bytes": content, "path": None} for content in (png(0), b"no picture", png(1))]
    stored.append({"bytes": None, "path": str(tmp_path / "outside.png")})
    text = datasets.Value("string")
    parts = datasets.List({"type": text, "text": text, "image": datasets.Image()})
    features = {"messages": datasets.List({"role": text, "content": parts})}
    rows = [{"messages": asked(WORD)} for _ in stored]
    for row in rows:
        row["messages"][1]["content"] = [WORD]
    for row, image_of in zip(rows, stored, strict=True):
        if place == "messages":
            row["messages"][0]["content"] = [{**PLACE, "image": image_of}]
        else:
            row[place] = image_of if place == "image" else [image_of]
            features[place] = datasets.Image() if place == "image" else datasets.List(datasets.Image())
    made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    (tmp_path / "images").mkdir()
    dataset = ChatDataset(made.select([0, 1, 2, 3]), tmp_path / "images", on_bad_sample="skip")
    assert [dataset[i].name for i in range(4)] == ["row 0", "row 2", "row 2", "row 0"]
    assert dataset[2].images[0].tobytes() == drawn(1).tobytes()
    assert "can't be read" in dataset.skipped["1"]
    assert "inside the folder" in dataset.skipped["3"]
    assert len(of_data(dataset)) == 32


def test_a_transform_of_the_user_s_own_stays():
    datasets = pytest.importorskip("datasets")

    def made(batch):
        return {"messages": [turns(f"w{i}", "w2") for i in batch["number"]]}

    rows = datasets.Dataset.from_dict({"number": [5, 6]}).with_transform(made)
    assert texts(ChatDataset(rows)[1]) == [["w6"], ["w2"]]


def test_fingerprints_see_what_is_seen():
    def of(image):
        return of_data(ChatDataset([{"image": image, "messages": turns("w1", "w2")}]))

    exif = Image.Exif()
    exif[0x0112] = 3
    buffer = io.BytesIO()
    drawn(0).save(buffer, "PNG", exif=exif)
    assert of(drawn(0)) == of(Image.open(io.BytesIO(png(0)))) != of(Image.open(buffer))
    one, other = (Image.new("P", (4, 4)) for _ in range(2))
    one.putpalette([1, 2, 3])
    other.putpalette([4, 5, 6])
    assert of(one) != of(other)
    assert of(Image.open(io.BytesIO(png(0)[:500]))) != of(drawn(0))


def test_a_row_beyond_the_last_is_an_index_error(rows):
    dataset = ChatDataset(rows)
    assert [sample.name[:5] for sample in itertools.islice(dataset, 9)] == ["row 0", "row 1", "row 2", "row 3"]
    assert dataset[-1].name == dataset[3].name
    with pytest.raises(IndexError):
        dataset[4]


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([*ROLES, "<image>"]),
    lambda some: (
        st.lists(some, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "text", "role", "from", "content", "value", "image", "url", "image_url", "base64"]
            ),
            some | st.sampled_from(["text", "image", "image_url", "user", "assistant"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)
KEYS = ("id", "image", "images", "messages", "conversations", "question", "answer", "answers", "choices", "kind")


@given(st.dictionaries(st.sampled_from(KEYS), ODD, max_size=5) | ODD)
def test_odd_rows_are_samples_or_data_errors(tmp_path_factory, row):
    for folder in (None, tmp_path_factory.getbasetemp()):
        try:
            sample = read_sample(row, 3, folder)
        except DataError as error:
            named = str(error)
        else:
            named = sample.name
        assert named.startswith("row 3")


def bomb():
    """A PNG that says it has 40,000 x 40,000 pixels."""
    small = bytearray(png(0))
    small[16:24] = (40000).to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(small[12:29]).to_bytes(4, "big")
    return bytes(small)


def bad_rows(folder):
    whole = io.BytesIO()
    drawn(0).resize((400, 400)).save(whole, format="JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[:2000])
    (folder / "text.png").write_text("no image")
    fine = turns("w1", "w2")
    return {
        "truncated": ({"id": 7, "image": "truncated.jpg", "messages": fine}, r"\(id 7\).*truncated.jpg.*can't be read"),
        "no image": ({"image": "text.png", "messages": fine}, "text.png.*can't be read"),
        "missing": ({"image": "gone.png", "messages": fine}, "gone.png.*can't be read"),
        "bytes": ({"image": {"bytes": b"zzz"}, "messages": fine}, "can't be read"),
        "too few": ({"image": drawn(0), "messages": turns("<image> <image>", "w2")}, "1 image.* and 2 place"),
        "no answer": ({"image": drawn(0), "messages": turns("w1")}, "has no answer"),
        "empty answer": ({"image": drawn(0), "messages": turns("w1", "")}, "has no answer"),
        "role": ({"messages": [{"role": "narrator", "content": "x"}]}, "role 'narrator'; known are"),
        "part": ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "neither an image nor a text"),
        "content": ({"messages": [{"role": "user", "content": 3}]}, "expected text or a list"),
        "keys": ({"image": drawn(0), "text": "x"}, "neither 'messages' nor 'conversations'"),
        "row": (["x"], "is a list; expected a mapping"),
        "turns": ({"messages": "x"}, "'messages' is a str; expected a list of turns"),
        "turn": ({"messages": ["x"]}, "the turn 'x' is no mapping"),
        "no turns": ({"messages": [], "conversations": None}, "has no answer"),
        "null": ({"messages": None, "conversations": None}, "neither 'messages' nor 'conversations'"),
        "roles": ({"messages": [{"role": ["user"], "content": "x"}]}, "role .'user'.; known are"),
        "nothing": ({"messages": [{"role": "user", "content": None}]}, "expected text or a list"),
        "surrogate": ({"messages": turns("\ud800", "w2")}, "is no Unicode text"),
        "folder": ({"image": ".", "messages": fine}, "can't be read"),
        "zero": ({"image": "a\0b", "messages": fine}, "can't be read"),
        "number": ({"image": 3, "messages": fine}, "an image is int"),
        "hole": ({"image": [None], "messages": fine}, "an image is NoneType"),
        "url": ({"image": "https://localhost/a.png", "messages": fine}, "URLs aren't opened"),
        "base64": ({"messages": asked({**PLACE, "base64": 3})}, "'base64' can't be read"),
        "bomb": ({"image": {"bytes": bomb()}, "messages": fine}, "decompression bomb"),
    }


BAD = (
    *("truncated", "no image", "missing", "bytes", "too few", "no answer", "empty answer", "role", "part", "content"),
    *("keys", "row", "turns", "turn", "no turns", "null", "roles", "nothing", "surrogate", "folder", "zero", "number"),
    *("hole", "url", "base64", "bomb"),
)


@pytest.mark.parametrize("name", BAD)
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
    with pytest.raises(DataError, match="has splits, train, test; give the folder of one"):
        ChatDataset({"train": ROWS, "test": ROWS})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.json", "{", "isn't valid JSON"),
        ("rows.json", "{}", "expected a list of rows"),
        ("rows.jsonl", '{"a": 1}\n{', "line 2 isn't valid JSON"),
        ("rows.json", "[" * 100000, "nested too deeply"),
        ("rows.json", "[" * 70 + "]" * 70, "nested too deeply; at most 64"),
        ("rows.json", '[{"id": 1, "id": 2}]', "the key 'id' stands twice"),
        ("rows.jsonl", '{"id": 1}\n{"id": NaN}', "line 2: the value NaN isn't a finite number"),
        ("rows.json", "9" * 5000, "isn't valid JSON"),
        ("rows.json", b"\xff", "isn't UTF-8: byte 0xff at 0"),
        ("rows.csv", "a,b", "unknown format '.csv'"),
        ("rows.parquet", "no table", "can't be read as a data set"),
        ("gone.json", None, "doesn't exist"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


def test_folders_without_a_saved_data_set(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(DataError, match="holds no saved data set"):
        read_rows(tmp_path / "rows.jsonl")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="needs the library datasets"):
        read_rows(tmp_path / "rows.jsonl")


def saved(folder, rows=None):
    datasets = pytest.importorskip("datasets")
    given = [{"image": {"bytes": png(i), "path": None}, "messages": turns("w1", "w2")} for i in range(3)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
        }
    )
    made = datasets.Dataset.from_list(rows or given, features=features)
    made.save_to_disk(str(folder / "rows"))
    made.to_parquet(str(folder / "rows.parquet"))
    return folder / "rows", folder / "rows.parquet"


def test_images_of_files_stay_as_they_are_stored(tmp_path):
    for path in saved(tmp_path):
        rows = read_rows(path)
        assert rows[1]["image"] == {"bytes": png(1), "path": None}
        assert ChatDataset(rows)[1].images[0].tobytes() == drawn(1).tobytes()


@pytest.mark.parametrize("name", ["../outside.arrow", "/etc/hostname", "link.arrow", ""])
def test_a_saved_folder_names_files_of_its_own_only(tmp_path, name):
    folder, _ = saved(tmp_path)
    (arrow,) = folder.glob("*.arrow")
    (tmp_path / "outside.arrow").write_bytes(arrow.read_bytes())
    (folder / "link.arrow").symlink_to(tmp_path / "outside.arrow")
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": name}]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"Use the name alone|outside its folder"):
        read_rows(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_format_type": "custom"}, "asks for the format 'custom'"),
        ({"_data_files": 3}, "doesn't describe a data set"),
        ({"_data_files": [3]}, "doesn't describe a data set"),
        ({"_fingerprint": {}, "_split": []}, "can't be read as a data set"),
    ],
)
def test_saved_folders_whose_description_is_odd(tmp_path, change, message):
    folder, _ = saved(tmp_path)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | change))
    with pytest.raises(DataError, match=message):
        read_rows(folder)


def test_saved_folders_with_splits_and_without_anything(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="the data has splits, train, test; give the folder of one"):
        read_rows(tmp_path)
    (tmp_path / "dataset_dict.json").unlink()
    with pytest.raises(DataError, match=r"it has no state\.json"):
        read_rows(tmp_path)


def test_images_that_are_all_gone_are_missed(tmp_path):
    rows = [{"image": None, "messages": turns("w1", "w2")} for _ in range(3)]
    for path in saved(tmp_path, rows):
        with pytest.raises(DataError, match="image hold nulls in all 3 rows"):
            read_rows(path)


def test_a_broken_image_in_a_table_names_its_row(tmp_path):
    rows = [{"image": {"bytes": png(0)[:200], "path": None}, "messages": turns("w1", "w2")}]
    for path in saved(tmp_path, rows):
        with pytest.raises(DataError, match="row 0: image 'bytes' can't be read"):
            ChatDataset(read_rows(path))[0]
