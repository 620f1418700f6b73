"""Names from files and data sets stay in their folder; files appear whole, by one writer at a time."""

import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.files import bare_name, inside, locked, whole, write_whole


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


def test_what_is_written_at_once_does_not_meet(tmp_path):
    """A second writer comes, writes and goes while the first one is in the middle, in the same process."""
    path = tmp_path / "file"
    with whole(path) as first:
        first.write_text("first")
        write_whole(path, "second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "before")

    def fail():
        with whole(path) as scratch:
            scratch.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "before"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


HOLDER = """
import sys
from pathlib import Path
from tokenflex.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
    Path(sys.argv[1]).write_text("from the other process")
"""


def holder(path):
    """Another process that holds a lock until it is told to go on."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    return other


def test_another_process_waits_its_turn(tmp_path):
    path, told = tmp_path / "file", []
    with holder(path) as other:

        def waiting():
            told.append(path.exists())
            other.stdin.write("\n")
            other.stdin.flush()

        with locked(path, "another share", waiting=lambda: told.append("never")):
            pass
        with locked(path, waiting=waiting):
            assert path.read_text() == "from the other process"
    assert told == [False]
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_lock_is_given_back_by_a_process_that_dies(tmp_path):
    with holder(tmp_path / "file") as other:
        other.kill()
        other.wait()
    with locked(tmp_path / "file", waiting=lambda: pytest.fail("the lock is still held")):
        pass


def test_a_thread_may_take_its_lock_again_and_others_may_not(tmp_path):
    held, waits, done = threading.Event(), threading.Event(), []

    def second():
        held.wait()
        with locked(tmp_path, waiting=waits.set):
            done.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locked(tmp_path), locked(tmp_path):
        held.set()
        assert waits.wait(60)
        done.append("first")
    thread.join()
    assert done == ["first", "second"]


def test_one_path_by_two_names_is_one_lock(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with holder(tmp_path / "real" / "file") as other:
        told = []
        with locked(tmp_path / "link" / "file", waiting=lambda: (told.append(1), other.communicate("\n"))):
            assert told == [1]
