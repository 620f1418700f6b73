"""Images are decoded as a viewer shows them, and whatever can't be is a DataError."""

import base64
import io
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image

from tests.conftest import image as drawn
from tokenflex.errors import DataError
from tokenflex.images import decode, size

RAMP = np.linspace(0, 65535, 600).round().reshape(20, 30)
"""30 x 20 pixels from black to white in 16 bits, mean 127.5 in 8."""


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=kind, **options)
    except OSError as error:
        pytest.skip(f"this Pillow writes no such image: {error}")
    return buffer.getvalue()


def rotated(orientation, kind="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(drawn(0), kind, exif=exif)


def see_through(mode):
    """An image whose left half is transparent: red there, else blue."""
    image = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (4, 0, 8, 4))
    if mode != "P":
        return image.convert(mode)
    flat = Image.new("P", (8, 4), 0)
    flat.putpalette([255, 0, 0, 0, 0, 255])
    flat.paste(1, (4, 0, 8, 4))
    return flat


ORDINARY = {
    "rgb.png": lambda: encoded(drawn(0)),
    "rgb.jpg": lambda: encoded(drawn(0), "JPEG"),
    "grey.png": lambda: encoded(drawn(0).convert("L")),
    "grey.jpg": lambda: encoded(drawn(0).convert("L"), "JPEG"),
    "black-and-white.png": lambda: encoded(drawn(0).convert("1")),
    "cmyk.jpg": lambda: encoded(drawn(0).convert("CMYK"), "JPEG"),
    "cmyk.tiff": lambda: encoded(drawn(0).convert("CMYK"), "TIFF"),
    "palette.png": lambda: encoded(drawn(0).convert("P", palette=Image.Palette.ADAPTIVE)),
    "palette-with-a-hole.png": lambda: encoded(see_through("P"), transparency=0),
    "palette-with-alpha.png": lambda: encoded(see_through("P"), transparency=b"\x00\x80"),
    "alpha.png": lambda: encoded(see_through("RGBA")),
    "grey-alpha.png": lambda: encoded(see_through("LA")),
    "grey-with-a-hole.png": lambda: encoded(drawn(0).convert("L"), transparency=0),
    "alpha.webp": lambda: encoded(see_through("RGBA"), "WEBP", lossless=True),
    "animated.gif": lambda: encoded(drawn(0), "GIF", save_all=True, append_images=[drawn(1).resize((50, 40))]),
    "animated.png": lambda: encoded(drawn(0), save_all=True, append_images=[drawn(1).resize((50, 40))]),
    "animated.webp": lambda: encoded(drawn(0), "WEBP", save_all=True, append_images=[drawn(1).resize((50, 40))]),
    **{f"turned-{i}.jpg": lambda i=i: rotated(i) for i in range(1, 9)},
    "turned.png": lambda: rotated(6, "PNG"),
    "turned.webp": lambda: rotated(6, "WEBP"),
}


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.filterwarnings("error")
def test_ordinary_images_are_those_of_transformers(name, tmp_path):
    content = ORDINARY[name]()
    (tmp_path / name).write_bytes(content)
    seen = [
        decode(content),
        decode(tmp_path / name),
        decode(str(tmp_path / name)),
        decode({"bytes": content, "path": None}),
        decode({"bytes": None, "path": name}, tmp_path),
        decode("data:image/any;base64," + base64.b64encode(content).decode()),
    ]
    with Image.open(tmp_path / name) as image:
        seen.append(decode(image))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = load_image(str(tmp_path / name))
    for image in seen:
        assert (image.mode, image.size, image.tobytes()) == ("RGB", expected.size, expected.tobytes())
        assert not image.info
        assert not image.getexif()


def test_turned_by_hand():
    assert decode(rotated(6)).size == (40, 50)
    plain = np.asarray(decode(rotated(1, "PNG")))
    assert (np.asarray(decode(rotated(6, "PNG"))) == np.rot90(plain, -1)).all()
    assert (np.asarray(decode(rotated(3, "PNG"))) == np.rot90(plain, 2)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_cannot_be_read_says_nothing():
    broken = encoded(drawn(0), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fgarbage")
    assert decode(broken).tobytes() == drawn(0).tobytes()
    assert decode(encoded(drawn(0), exif=b"Exif\x00\x00nothing")).size == (50, 40)


def test_the_first_frame_of_an_animation():
    assert decode(ORDINARY["animated.webp"]()).size == (50, 40)
    gif = np.asarray(decode(ORDINARY["animated.gif"]())).astype(int)
    first, second = (np.asarray(drawn(i).resize((50, 40))).astype(int) for i in (0, 1))
    assert abs(gif - first).mean() < abs(gif - second).mean() / 2


def test_what_is_given_stays_as_it_is():
    image = Image.open(io.BytesIO(rotated(6)))
    decode(image)
    assert image.size == (50, 40)
    assert image.getexif()[0x0112] == 6
    plain = drawn(0)
    decode(plain).putpixel((0, 0), (1, 2, 3))
    assert plain.tobytes() == drawn(0).tobytes()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_are_scaled(kind):
    decoded = np.asarray(decode(encoded(Image.fromarray(RAMP.astype(np.uint16)), kind)))
    assert decoded.shape == (20, 30, 3)
    assert abs(decoded.astype(float) - RAMP[..., None] / 257).max() <= 0.5


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_dark_images_of_sixteen_bits_stay_dark(kind):
    dark = Image.fromarray(np.full((4, 4), 200, np.uint16))
    assert np.asarray(decode(encoded(dark, kind))).max() == 1


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (np.array([[0, 255]], np.int32), [0, 255]),
        (np.array([[0, 128]], np.int32), [0, 128]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 1 << 20, 1 << 21]], np.int32), [0, 128, 255]),
        (np.array([[-100, 0, 255]], np.int32), [0, 72, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], np.float32), [0, 1, 255]),
        (np.array([[-1, 0, 1]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, np.inf, -np.inf, 0.2]], np.float32), [0, 255, 0, 51]),
        (np.full((1, 2), np.nan, np.float32), [0, 0]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_whole_numbers_and_floats_are_scaled(values, seen):
    image = Image.fromarray(values)
    assert np.asarray(decode(image))[0, :, 0].tolist() == seen
    assert np.asarray(decode(encoded(image, "TIFF")))[0, :, 2].tolist() == seen


def header(width, height):
    """A PNG that says it is this large and has no pixels."""
    small = bytearray(encoded(Image.new("L", (1, 1))))
    small[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    small[29:33] = zlib.crc32(small[12:29]).to_bytes(4, "big")
    return bytes(small)


@pytest.mark.parametrize("content", [b"", b"no image", header(40000, 40000), header(0, 0), rotated(1)[:900]])
def test_bytes_that_are_no_image(content):
    with pytest.raises(DataError, match=r"image 'bytes' can't be read \(.*Mend or remove it"):
        decode(content)


def test_more_pixels_than_pil_allows(monkeypatch):
    content = encoded(drawn(0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    with pytest.raises(DataError, match=r"can't be read \(.*decompression bomb"):
        decode(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1900)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"can't be read \(.*decompression bomb"):
            decode(content)
    with pytest.warns(Image.DecompressionBombWarning):
        assert decode(content).tobytes() == drawn(0).tobytes()


@given(st.binary(max_size=60), st.integers(0, 2000), st.integers(0, 20))
def test_damaged_files_are_decoded_or_refused(noise, at, cut):
    whole = rotated(6, "PNG" if at % 2 else "JPEG")
    damaged = whole[: at % len(whole)] + noise + whole[at % len(whole) + len(noise) : len(whole) - cut]
    try:
        image = decode(damaged)
    except DataError:
        return
    assert image.mode == "RGB"


@pytest.mark.parametrize("given", [None, 3, 1.5, [], {}, {"bytes": None, "path": None}, {"bytes": 3}, [b"x"]])
def test_what_is_no_image_at_all(given):
    with pytest.raises(DataError, match=r"an image is \w+; expected a PIL image, bytes of an image file or a path"):
        decode(given)


def test_images_without_pixels():
    with pytest.raises(DataError, match=r"image 'Image' can't be read \(it has 0 x 5 pixels"):
        decode(Image.new("RGB", (0, 5)))


def test_text_is_not_taken_for_bytes():
    with pytest.raises(DataError, match="an image's 'bytes' are text"):
        decode({"bytes": "../secret.png", "path": None})


def test_no_url_is_opened():
    for url in ("http://localhost/a.png", "HTTPS://localhost/a.png", "ftp://localhost/a", "file:///tmp/a.png"):
        with pytest.raises(DataError, match="URLs aren't opened; download it"):
            decode(url)


@pytest.mark.parametrize("name", ["gone.png", ".", "", "a\0b", "x" * 5000, "data:image/png;base64,????", "\ud800"])
@pytest.mark.parametrize("inside", [True, False])
def test_paths_that_are_no_file(name, inside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="can't be read") as caught:
        decode(name, tmp_path if inside else None)
    assert len(str(caught.value)) < 12000


def test_paths_stay_below_the_folder(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for path in (tmp_path / "secret.png", folder / "deep" / "fine.png"):
        drawn(0).save(path)
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "in.png").symlink_to(folder / "deep" / "fine.png")
    for name in ("deep/fine.png", "in.png", str(folder / "in.png"), Path("deep/../in.png")):
        assert decode(name, folder).tobytes() == drawn(0).tobytes()
    for name in ("../secret.png", "out.png", str(tmp_path / "secret.png"), {"path": "../secret.png"}):
        with pytest.raises(DataError, match="inside the folder"):
            decode(name, folder)
    assert decode(tmp_path / "secret.png").size == (50, 40)


def test_a_size_is_told_without_the_pixels(tmp_path):
    image = drawn(0).resize((30, 20))
    cut = encoded(image)[:60]  # the head of a file
    (tmp_path / "a.png").write_bytes(encoded(image))
    assert size(image) == size(encoded(image)) == size({"bytes": cut, "path": None}) == (20, 30)
    assert size("a.png", tmp_path) == size({"path": "a.png"}, tmp_path) == (20, 30)
    assert [size(b"no image"), size("b.png", tmp_path), size("../a.png", tmp_path), size(None), size(3)] == [None] * 5
