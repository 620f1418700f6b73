"""Questions in every format people have, and what is refused."""

import json
import sys

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import image as drawn
from tests.evaluation.conftest import ROWS
from tests.training.test_data import KEYS, ODD
from tokenflex.errors import ConfigError, DataError
from tokenflex.evaluation.questions import Question, Questions, read


def one(**row):
    return Questions([{"image": drawn(0), "question": "w1", "answer": "w2", **row}])


def texts(sample):
    return [part.get("text", "<image>") for message in sample.messages for part in message["content"]]


def as_file(kind, folder):
    """The rows in a format; returns the path."""
    (folder / "images").mkdir()
    plain = []
    for i, row in enumerate(ROWS):
        row["image"].save(folder / "images" / f"{i}.png")
        plain.append({**row, "image": f"images/{i}.png"})
    path = folder / f"rows.{kind}"
    if kind == "json":
        chats = [
            {
                **{key: row[key] for key in ("id", "image", "kind")},
                "conversations": [
                    {"from": "human", "value": f"<image>\n{row['question']}"},
                    {"from": "gpt", "value": row["answer"]},
                ],
            }
            for row in plain
        ]
        path.write_text(json.dumps(chats))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, plain)))
    else:
        data = datasets.Dataset.from_list(ROWS).cast_column("image", datasets.Image())
        data.to_parquet(path) if kind == "parquet" else data.save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "folder"])
def test_every_format_says_the_same(kind, tmp_path):
    found = read(as_file(kind, tmp_path), image_folder=tmp_path)
    assert found.questions == [
        Question(i, row["id"], row["kind"], row["question"], (row["answer"],)) for i, row in enumerate(ROWS)
    ]
    for i, row in enumerate(ROWS):
        sample = found.sample(i)
        assert texts(sample) == ["<image>", row["question"]]
        assert sample.images[0].tobytes() == row["image"].tobytes()
    assert len(read(tmp_path / f"rows.{kind}", image_folder=tmp_path, limit=2)) == 2


def test_images_are_decoded_only_when_asked_for(tmp_path, monkeypatch):
    path = as_file("parquet", tmp_path)
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *a, **k: pytest.fail("decoded"))
    assert len(read(path)) == len(ROWS)
    missing = Questions([{"image": "not/there.png", "question": "w1", "answer": "w2"}])
    with pytest.raises(DataError, match=r"row 0: image 'not/there.png' can't be read"):
        missing.sample(0)


@pytest.mark.parametrize(
    ("answer", "references"),
    [
        ({"answer": "w2"}, ("w2",)),
        ({"answer": 3}, ("3",)),
        ({"answer": None, "answers": ["w2", "w3", "w2"]}, ("w2", "w3", "w2")),
        ({"answer": None, "answers": [{"answer": "w2", "answer_id": 1}, {"answer": "w3"}]}, ("w2", "w3")),
        ({"answer": None, "answers": {"answer": ["w2", "w3"], "answer_id": [1, 2]}}, ("w2", "w3")),
        ({"choices": ["cat", "dog"], "answer": 1}, ("B", "dog")),
        ({"choices": ["cat", "dog"], "answer": "b"}, ("B", "dog")),
        ({"choices": ["cat", "dog"], "answer": "dog"}, ("B", "dog")),
        ({"choices": ["cat", "dog"], "answer": "1"}, ("B", "dog")),
        ({"choices": [4, 1], "answer": "1"}, ("B", "1")),  # a text rather than a place
        ({"choices": ["B", "A"], "answer": 0}, ("A",)),  # its text would be taken for the other's letter
    ],
)  # fmt: skip
def test_reference_answers(answer, references):
    assert one(**answer).questions[0].references == references


def test_choices_and_suffix_are_written_under_the_question():
    row = {"image": drawn(0), "question": "w1", "answer": 0, "choices": ["w2", "w3"]}
    made = Questions([row], suffix="w9")
    assert texts(made.sample(0)) == ["<image>", "w1\nA. w2\nB. w3\nw9"]
    assert made.questions[0].text == "w1\nA. w2\nB. w3"
    chat = [{"role": "user", "content": [{"type": "text", "text": "w1"}]}, {"role": "assistant", "content": "w2"}]
    assert texts(Questions([{"messages": chat}], suffix="w9").sample(0)) == ["w1", "\nw9"]


def test_conversations_are_asked_up_to_the_last_answer():
    chat = [("user", "w1 <image>"), ("assistant", "w2"), ("user", "<image> w3"), ("assistant", "w4")]
    messages = [{"role": role, "content": text} for role, text in chat]
    made = Questions([{"images": [drawn(0), drawn(1)], "messages": messages, "category": "two"}])
    assert made.questions == [Question(0, "0", "two", "w3", ("w4",))]
    assert texts(made.sample(0)) == ["w1", "<image>", "w2", "<image>", "w3"]
    assert len(made.sample(0).images) == 2
    open_end = Questions([{"images": [drawn(0), drawn(1)], "messages": messages[:-1], "answers": ["w5"]}])
    assert open_end.questions[0].references == ("w5",)
    assert texts(open_end.sample(0)) == texts(made.sample(0))


def test_images_inside_messages_are_seen():
    parts = [{"type": "text", "text": "w1"}, {"type": "image", "image": drawn(0)}, {"type": "image"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "w2"}]
    sample = Questions([{"image": drawn(1), "messages": chat}], suffix="w9").sample(0)
    assert texts(sample) == ["w1", "<image>", "<image>", "\nw9"]
    assert [image.tobytes() for image in sample.images] == [drawn(0).tobytes(), drawn(1).tobytes()]


def test_names_lead_out_of_no_image_folder(tmp_path):
    (tmp_path / "images").mkdir()
    drawn(0).save(tmp_path / "a.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "a.png")
    for name in ("../a.png", "link.png", str(tmp_path / "a.png")):
        asked = Questions([{"image": name, "question": "w1", "answer": "w2"}], image_folder=tmp_path / "images")
        with pytest.raises(DataError, match=r"row 0: image .* can't be read \(.* inside the folder"):
            asked.sample(0)
    assert len(Questions([{"image": str(tmp_path / "a.png"), "question": "w1", "answer": "w2"}]).sample(0).images) == 1


def test_images_that_datasets_cannot_open():
    stored = [{"image": {"bytes": b"no picture", "path": None}, "question": "w1", "answer": "w2"}]
    asked = Questions(datasets.Dataset.from_list(stored).cast_column("image", datasets.Image()))
    with pytest.raises(DataError, match=r"row 0: image 'bytes' can't be read"):
        asked.sample(0)


@given(st.dictionaries(st.sampled_from(KEYS), ODD, max_size=6) | ODD)
def test_odd_rows_are_questions_or_data_errors(row):
    try:
        made = Questions([row], suffix="w9")
        named = made.sample(0).name
        assert made.questions[0].references
    except DataError as error:
        named = str(error)
    assert named.startswith("row 0")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": None}, r"row 0 has no 'question', 'messages' or 'conversations'; it has \['answer', 'image'"),
        ({"answer": None, "id": "x"}, r"row 0 \(id 'x'\) has no reference answer"),
        ({"answer": None, "answers": []}, r"\[\] are no reference answers"),
        ({"choices": ["cat", "dog"], "answer": "cow"}, "'cow' doesn't name one of the choices"),
        ({"choices": ["cat", "dog"], "answer": 2}, "2 doesn't name one of the choices"),
        ({"choices": ["B", "A"], "answer": "A"}, "'A' doesn't name one of the choices"),
        ({"choices": ["cat"], "answer": 0}, "give a list of 2 to 26 texts"),
        ({"messages": [{"role": "assistant", "content": "w2"}]}, "nothing is asked"),
        ({"messages": "w1"}, "'messages' is a str; expected a list of turns"),
        ({"messages": ["w1"]}, "the turn 'w1' is no mapping"),
        ({"messages": [{"role": "user", "content": None}]}, "content is None; expected text or a list"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "neither an image nor a text"),
        ({"question": "\ud800"}, "is no Unicode text"),
        ({"answer": "\ud800"}, "is no Unicode text"),
        ({"answers": [["w2"]]}, "are no reference answers"),
        ({"choices": ["cat", "dog"], "answer": "9" * 5000}, "doesn't name one of the choices"),
    ],
)
def test_bad_rows_are_named(row, message):
    with pytest.raises(DataError, match=message):
        one(**row)


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="limit=0 leaves no row"):
        Questions(ROWS, limit=0)
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list([{"question": "w1", "answer": "w2"}])})
    splits.save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match="has splits, train; give the folder of one"):
        read(tmp_path / "splits")
    assert len(read(tmp_path / "splits" / "train")) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no saved data set"):
        read(tmp_path / "empty")

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the library datasets: pip install 'tokenflex\[eval\]'"):
        read(tmp_path / "splits" / "train")
