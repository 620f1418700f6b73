"""A small archive that looks like the emoji package, and sources made of it."""

import io
import json
import tarfile

import pytest
from PIL import Image

from tokenflex.study import sources

SUBCATEGORIES = {
    "face": "face-smiling",
    "person": "person-role",
    "hand": "hands",
    "animal": "animal-bird",
    "food": "food-fruit",
    "vehicle": "transport-air",
    "building": "place-building",
    "flag": "country-flag",
    "clock": "time",
    "heart": "heart",
}
WORDS = tuple(a + b + c for a in "BCDFG" for b in "AEIOU" for c in "LMNRT")


@pytest.fixture(scope="session")
def emoji(tmp_path_factory):
    """Twelve one-coloured emoji of each kind."""
    entries, files = [], {}
    for number, (kind, subcategory) in enumerate(SUBCATEGORIES.items()):
        for i in range(12):
            name, data = f"{kind}{i}.png", io.BytesIO()
            Image.new("RGBA", (64, 64), (20 * number, 20 * i, 90, 255)).save(data, format="PNG")
            files[f"package/img/google/64/{name}"] = data.getvalue()
            entries.append({"unified": f"{kind}{i}", "image": name, "subcategory": subcategory, "has_img_google": True})
    files["package/emoji.json"] = json.dumps(entries).encode()
    path = tmp_path_factory.mktemp("emoji") / "emoji.tgz"
    with tarfile.open(path, "w:gz") as packed:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="session")
def train(emoji):
    return sources.load("train", emoji, WORDS)


@pytest.fixture(scope="session")
def test(emoji):
    return sources.load("test", emoji, WORDS)
