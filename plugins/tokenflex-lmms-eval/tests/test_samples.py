import numpy as np
import pytest
from PIL import Image

from tokenflex.errors import DataError
from tokenflex_lmms_eval.samples import read


def test_images_are_split_from_text_in_order(image, tmp_path):
    image(1).save(tmp_path / "one.png")
    grey = image(0).convert("L")
    messages = [
        {"role": "system", "content": "short answers"},
        {"role": "user", "content": [
            {"type": "text", "text": "first"},
            {"type": "image", "url": grey},
            {"type": "text", "text": "then"},
            {"type": "image", "url": str(tmp_path / "one.png")},
        ]},
    ]  # fmt: skip
    sample = read(messages, "task t, document 3")
    assert [got.size for got in sample.images] == [image(0).size, image(1).size]
    assert {got.mode for got in sample.images} == {"RGB"}
    assert list(sample.messages) == [
        {"role": "system", "content": [{"type": "text", "text": "short answers"}]},
        {"role": "user", "content": [
            {"type": "text", "text": "first"},
            {"type": "image"},
            {"type": "text", "text": "then"},
            {"type": "image"},
        ]},
    ]  # fmt: skip
    assert messages[1]["content"][1]["url"] is grey


def test_images_are_upright_and_deep_greys_are_scaled(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 60)).save(tmp_path / "turned.jpg", exif=exif)
    grey = Image.fromarray(np.full((4, 4), 127 * 257, np.uint16))
    parts = [{"type": "image", "url": str(tmp_path / "turned.jpg")}, {"type": "image", "url": grey}]
    turned, scaled = read([{"role": "user", "content": parts}], "n").images
    assert turned.size == (60, 20)
    assert scaled.getextrema() == ((127, 127),) * 3


def test_text_only():
    assert read([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "n").images == ()


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages are None"),
        ([], "messages are"),
        ("w1", "messages are 'w1'"),
        ([{"role": "judge", "content": "a"}], "role 'judge' isn't known"),
        ([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "type 'video' can't be read"),
        ([{"role": "user", "content": [{"type": "text"}]}], "type 'text' can't be read"),
        (["w1"], "the message 'w1' is no mapping"),
        ([{"role": "user", "content": 3}], "content is 3; expected text or a list of content items"),
        ([{"role": "user", "content": ["w1"]}], "type None can't be read"),
        ([{"role": "user", "content": [{"type": "image", "url": 3}]}], "an image is int"),
        ([{"role": "user", "content": [{"type": "image", "url": "a\0b"}]}], "can't be read"),
        ([{"role": "user", "content": [{"type": "image", "url": "http://localhost/a"}]}], "URLs aren't opened"),
        ([{"role": "user", "content": [{"type": "image", "url": "nowhere.png"}]}], "'nowhere.png' can't be read"),
    ],
)
def test_what_cannot_be_read_names_the_document(messages, message):
    with pytest.raises(DataError, match=f"task t, document 3: .*{message}"):
        read(messages, "task t, document 3")
