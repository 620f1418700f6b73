"""Names from files and data sets stay in their folder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.files import bare_name, inside


@pytest.fixture
def folder(tmp_path):
    """A folder with a file in a folder, links that stay inside and links that point out, beside a secret."""
    base = tmp_path / "base"
    (base / "a").mkdir(parents=True)
    (base / "a" / "file").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    (base / "in").symlink_to(base / "a" / "file")
    (base / "out").symlink_to(tmp_path / "secret")
    (base / "up").symlink_to(tmp_path)
    (base / "loop").symlink_to(base / "loop")
    return base


@pytest.mark.parametrize("name", ["a/file", "a/../a/file", "in", "./a/file", "up/base/a/file"])
def test_names_that_stay_inside(folder, name):
    assert inside(folder, name) == (folder / "a" / "file").resolve()


def test_absolute_names_inside_and_files_that_are_missing(folder):
    assert inside(folder, str(folder / "a" / "file")) == (folder / "a" / "file").resolve()
    assert inside(folder, "not/there") == (folder / "not" / "there").resolve()


def test_the_folder_itself_may_be_reached_through_a_link(folder, tmp_path):
    (tmp_path / "linked").symlink_to(folder)
    assert inside(tmp_path / "linked", "a/file") == (folder / "a" / "file").resolve()


@pytest.mark.parametrize(
    "name",
    ["../secret", "a/../../secret", "/etc/passwd", "out", "up/secret", "..", ".", "", "\0", "a\0b", "\ud800", None, 3],
)
def test_names_that_lead_out(folder, name):
    with pytest.raises(ValueError, match=r"inside the folder|no usable path"):
        inside(folder, name)


def test_a_sibling_whose_name_begins_alike_is_outside(folder, tmp_path):
    with pytest.raises(ValueError, match="inside the folder"):
        inside(folder, str(tmp_path / "base2" / "file"))


def test_links_that_lead_nowhere_open_nothing(folder):
    try:
        path = inside(folder, "loop")
    except ValueError:
        return
    assert not path.exists()


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=8))
def test_every_name_is_inside_or_refused(tmp_path_factory, name):
    base = tmp_path_factory.getbasetemp() / "any"
    base.mkdir(exist_ok=True)
    try:
        path = inside(base, name)
    except ValueError:
        return
    assert base.resolve() in path.parents


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a", "a\\b", "C:a", "a\0", "a\n", None, 3])
def test_names_that_are_not_bare(name):
    with pytest.raises(ValueError, match="isn't the bare name"):
        bare_name(name)


def test_bare_names():
    for name in ("model-00001-of-00002.safetensors", "a.b", "...", "~", "-x", "a b"):
        assert bare_name(name) == name
