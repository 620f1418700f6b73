"""Every odd image is either what another decoder makes of it, or an error of ours, before memory is spent."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenflex import images
from tokenflex.errors import DataError
from tokenflex.images import decode, size

PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Adam7: first column, first row, steps to the right and down."""
KINDS = {"grey": (0, 1), "rgb": (2, 3), "palette": (3, 1), "grey-alpha": (4, 2), "rgba": (6, 4)}


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def lines(pixels, depth):
    """Rows of a PNG without filters; ``(rows, cols, channels)`` of numbers below ``2 ** depth``."""
    if depth == 16:
        return b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    if depth == 8:
        return b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in pixels)
    bits = [((row.reshape(-1, 1) >> np.arange(depth)[::-1]) & 1).reshape(-1) for row in pixels]
    return b"".join(b"\0" + np.packbits(row.astype(np.uint8)).tobytes() for row in bits)


def png(pixels, kind="rgb", depth=8, interlaced=False, more=b""):
    """A PNG by hand: no code of PIL's has a part in it."""
    code, channels = KINDS[kind]
    pixels = np.asarray(pixels).reshape(*np.shape(pixels)[:2], channels)
    rows, cols = pixels.shape[:2]
    parts = [pixels[y::down, x::right] for x, y, right, down in PASSES] if interlaced else [pixels]
    data = b"".join(lines(part, depth) for part in parts if part.size)
    head = struct.pack(">IIBBBBB", cols, rows, depth, code, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )


def numbers(*shape, below=256):
    return np.random.default_rng(sum(shape)).integers(0, below, shape)


def seen(content):
    return np.asarray(decode(content)).astype(int)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (13, 11), (16, 8)])
def test_png_of_every_kind(shape, interlaced):
    def grey(values):
        return np.repeat(np.asarray(values).reshape(*shape, 1), 3, axis=-1)

    rgb, rgba, one = numbers(*shape, 3), numbers(*shape, 4), numbers(*shape)
    assert (seen(png(rgb, "rgb", 8, interlaced)) == rgb).all()
    assert (seen(png(rgba, "rgba", 8, interlaced)) == rgba[..., :3]).all()
    assert (seen(png(one, "grey", 8, interlaced)) == grey(one)).all()
    assert (seen(png(rgba[..., :2], "grey-alpha", 8, interlaced)) == grey(rgba[..., 0])).all()
    for depth in (1, 2, 4):
        few = numbers(*shape, below=1 << depth)
        assert (seen(png(few, "grey", depth, interlaced)) == grey(few * (255 // ((1 << depth) - 1)))).all()
        colours = numbers(1 << depth, 3)
        table = chunk(b"PLTE", colours.astype(np.uint8).tobytes())
        assert (seen(png(few, "palette", depth, interlaced, table)) == colours[few]).all()
        holes = table + chunk(b"tRNS", bytes([0, 128]))
        assert (seen(png(few, "palette", depth, interlaced, holes)) == colours[few]).all()
    deep = numbers(*shape, below=65536)
    assert abs(seen(png(deep, "grey", 16, interlaced)) - grey(deep) / 257).max() <= 0.5
    for kind, channels in (("rgb", 3), ("rgba", 4), ("grey-alpha", 2)):
        deep = numbers(*shape, channels, below=65536)
        wanted = deep[..., :3] if channels > 2 else grey(deep[..., 0])
        assert abs(seen(png(deep, kind, 16, interlaced)) - wanted / 257).max() <= 1  # PIL keeps the upper 8 bits


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_tiff_as_another_library_writes_it(dtype):
    tifffile = pytest.importorskip("tifffile")
    white = {"uint8": 255, "uint16": 65535, "int32": 65535, "float32": 1}[dtype]
    values = (np.linspace(0, 1, 77).reshape(7, 11) * white).astype(dtype)
    for options in ({}, {"byteorder": ">"}, {"rowsperstrip": 2}):
        target = io.BytesIO()
        tifffile.imwrite(target, values, **options)
        assert abs(seen(target.getvalue())[..., 1] - values.astype(float) / white * 255).max() <= 0.5


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_as_another_library_reads_it(mode, progressive):
    io_of = pytest.importorskip("torchvision.io")
    import torch

    ramp = np.linspace(0, 255, 40 * 50 * 3).reshape(40, 50, 3).astype(np.uint8)
    target = io.BytesIO()
    Image.fromarray(ramp).convert(mode).save(target, "JPEG", progressive=progressive)
    other = io_of.decode_jpeg(
        torch.frombuffer(bytearray(target.getvalue()), dtype=torch.uint8), mode=io_of.ImageReadMode.RGB
    )
    assert abs(seen(target.getvalue()) - other.permute(1, 2, 0).numpy().astype(int)).max() <= 3


def in_memory(mode):
    base = Image.fromarray(numbers(5, 7, 3).astype(np.uint8))
    if mode in ("La", "RGBa"):
        return base.convert("LA" if mode == "La" else "RGBA").convert(mode)
    return base.convert("P").convert("PA") if mode == "PA" else base.convert(mode)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LA", "PA", "La", "RGBa", "RGBX", "HSV"]
)
@pytest.mark.filterwarnings("error")
def test_every_mode_in_memory(mode):
    given = in_memory(mode)
    made = decode(given)
    assert (made.mode, made.size) == ("RGB", (7, 5))
    base = np.asarray(in_memory("L" if mode in ("L", "LA", "La") else "RGB").convert("RGB")).astype(int)
    if mode not in ("1", "P", "PA"):
        assert abs(np.asarray(made).astype(int) - base).max() <= (0 if mode in ("RGB", "RGBA", "L", "LA", "La") else 6)
    assert given.mode == mode


def test_a_cmyk_jpeg_of_photoshop_s_kind_is_not_negative():
    target = io.BytesIO()
    Image.new("RGB", (16, 16), (250, 20, 20)).convert("CMYK").save(target, "JPEG", quality=95)
    red = seen(target.getvalue())[8, 8]
    assert red[0] > 200
    assert red[1:].max() < 60


def test_long_and_thin():
    line = numbers(10_000, 1, 3)
    assert (seen(png(line)) == line).all()
    assert (seen(png(line.transpose(1, 0, 2))) == line.transpose(1, 0, 2)).all()


def animated(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    target = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(target, kind, save_all=True, append_images=frames[1:], **options)
    return target.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_animations_show_their_first_frame(kind):
    red = seen(animated(kind))[4, 4]
    assert red[0] > 240
    assert red[1:].max() < 16


def bomb(rows=13000, cols=13000):
    """A PNG of some kilobytes, all of it there, that fills gigabytes."""
    squeezed = zlib.compressobj(9)
    data = b"".join(squeezed.compress(bytes(1 + cols)) for _ in range(rows)) + squeezed.flush()
    head = struct.pack(">IIBBBBB", cols, rows, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_they_are_decoded(monkeypatch):
    content = bomb()
    assert len(content) < 200_000
    with pytest.raises(
        DataError, match=r"13000 x 13000 pixels, 169,000,000 in all; at most tokenflex.images.MAX_PIXELS"
    ):
        decode(content)
    assert size(content) == (13000, 13000)
    monkeypatch.undo()
    small = bomb(100, 100)
    monkeypatch.setattr(images, "MAX_PIXELS", 9_999)
    with pytest.raises(DataError, match="100 x 100 pixels"):
        decode(small)
    with pytest.raises(DataError, match="100 x 100 pixels"):
        decode(Image.new("RGB", (100, 100)))
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    assert decode(small).size == (100, 100)


MEMORY = """
import resource, sys
from pathlib import Path
from tokenflex import images
content = Path(sys.argv[1]).read_bytes()
height, width = images.size(content)
images.decode(Path(sys.argv[2]).read_bytes())
held = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, 2 * (held + int(float(sys.argv[3]) * height * width),))
images.decode(content)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="address space is read where Linux tells it")
@pytest.mark.parametrize("given", [("grey", 8), ("grey", 16), ("rgba", 8)])
def test_memory_per_pixel_is_as_stated(tmp_path, given):
    """In an address space with room for 16 bytes per pixel it is decoded, in one with room for 2 it isn't."""
    kind, depth = given
    for name, side in (("small.png", 3), ("large.png", 3000)):
        pixels = np.zeros((side, side, KINDS[kind][1]), np.uint8)
        (tmp_path / name).write_bytes(png(pixels, kind, depth))
    for room in (16, 2):
        command = [sys.executable, "-c", MEMORY, tmp_path / "large.png", tmp_path / "small.png", str(room)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (room == 16), done.stderr


def bitmap(cols, rows):
    """A run-length encoded bitmap with hardly any data."""
    palette, data = bytes(1024), b"\x00\x01"
    start = 14 + 40 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, cols, rows, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + palette + data


REFUSED = {
    "0 bytes": (b"", "can't be read"),
    "cut": (png(numbers(9, 9, 3))[:60], "can't be read"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nquit\n", "cannot identify"),
    "run lengths": (bitmap(9000, 9000), "run-length encoded bitmap of 9000 x 9000"),
    "text bomb": (
        png(numbers(2, 2, 3), more=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))),
        "(?i)MAX_TEXT_CHUNK|too large",
    ),
    "profile bomb": (
        png(numbers(2, 2, 3), more=chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(10**8)))),
        "(?i)MAX_TEXT_CHUNK|too large",
    ),
    "no pixels": (png(np.zeros((1, 1, 3)))[:16] + bytes(8) + png(np.zeros((1, 1, 3)))[24:], "can't be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    content, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        decode(content)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_large_exif_says_nothing_and_costs_nothing():
    exif = b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(60_000)
    pixels = numbers(3, 3, 3)
    assert (seen(png(pixels, more=chunk(b"eXIf", exif))) == pixels).all()
    turned = Image.Exif()
    turned[0x0112], turned[0x9286] = 3, b"x" * 60_000
    target = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(target, "PNG", exif=turned)
    assert (seen(target.getvalue()) == pixels[::-1, ::-1]).all()
