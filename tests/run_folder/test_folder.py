"""The folder of a run, as any command may fill it: begun once, gone on with by its own kind, refused to others."""

import json
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from tokenflex.errors import ConfigError, DataError
from tokenflex.files import write_whole
from tokenflex.run_folder import MANIFEST, RunFolder, RunKind, differences, sealed

SCHEMA = pa.schema([("place", pa.int64()), ("said", pa.string())])
RULES = {"format": sealed.one_of(3), "of": sealed.OBJECT}
NOTES = "notes.txt"
KIND = RunKind(
    version=3,
    without="no study. Make one.",
    made="holds a study of",
    instead="choose another folder",
    require=lambda found, where: sealed.require(found, RULES, where),
    compared=lambda stored, now: (stored["of"], now["of"]),
    once=(NOTES,),
)
OWN, OTHER = {"of": {"host": {"dim": 8}, "seed": 0}}, {"of": {"host": {"dim": 16}, "seed": 0}}


def rows(*places):
    return pa.Table.from_pylist([{"place": place, "said": f"w{place}"} for place in places], schema=SCHEMA)


def notes():
    return {NOTES: partial(write_whole, content="as asked")}


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "s", KIND)
    folder.begin(OWN, notes)
    return folder


def read(run, sure=True):
    return [
        (shard.path.name, shard.table["place"].to_pylist())
        for shard in run.shards(SCHEMA, sure=sure, metadata=("made",))
    ]


def test_it_is_begun_once(run):
    """What is written once is there before the manifest, and isn't made again."""
    assert (run.path / NOTES).read_text() == "as asked"
    assert run.begun
    assert run.manifest() == ({"format": 3, **OWN}, True)
    RunFolder(str(run.path), KIND).begin(OWN, lambda: pytest.fail("it was begun already"))


def test_another_run_is_refused_and_told_what_differs(run):
    message = r"something else: host\.dim: 8 stored, 16 now\. Go back to that, or choose another folder"
    with pytest.raises(ConfigError, match=message):
        run.begin(OTHER, notes)


def test_a_run_that_fails_at_its_beginning_has_not_begun(tmp_path):
    def failing(path: Path) -> None:
        path.write_text("half")
        raise DataError("no notes")

    folder = RunFolder(tmp_path, KIND)
    with pytest.raises(DataError, match="no notes"):
        folder.begin(OWN, lambda: {NOTES: failing})
    assert not folder.begun
    assert list(tmp_path.iterdir()) == []
    folder.begin(OWN, notes)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, NOTES]


def test_shards_that_no_manifest_tells_about_are_refused(run):
    """As when somebody removes a manifest that is in the way: rows of two runs would stand side by side."""
    run.writer(0).write(rows(1))
    (run.path / MANIFEST).unlink()
    with pytest.raises(ConfigError, match=r"has 1 file\(s\) such as part-00000-00000\.parquet and no manifest\.json"):
        run.begin(OTHER, notes)


def test_processes_write_shards_of_their_own_and_all_are_read(run):
    first, second = run.writer(0), run.writer(1)
    second.write(rows(1, 3), {"made": "there"})
    first.write(rows(0))
    first.write(rows(2))
    run.writer(0).write(rows(4))
    assert read(run) == [
        ("part-00000-00000.parquet", [0]),
        ("part-00000-00001.parquet", [2]),
        ("part-00000-00002.parquet", [4]),
        ("part-00001-00000.parquet", [1, 3]),
    ]
    told = [shard.metadata for shard in run.shards(SCHEMA, sure=True, metadata=("made",))]
    assert told == [{}, {}, {}, {"made": "there"}]


def test_files_of_a_shard_are_there_before_its_rows(run):
    def fails(path: Path) -> None:
        assert not list(run.path.glob("*.parquet"))
        raise DataError("no tensors")

    with pytest.raises(DataError, match="no tensors"):
        run.writer(0).write(rows(0), beside={".txt": fails})
    assert read(run) == []
    run.writer(0).write(rows(0), beside={".txt": partial(write_whole, content="tensors")})
    assert (run.path / "part-00000-00000.txt").read_text() == "tensors"


def test_what_a_killed_process_left_goes_with_the_next_of_its_rank(run):
    for name in ("part-00000-00000.parquet.0a.tmp", "part-00001-00000.parquet.0b.tmp", f"{NOTES}.0c.tmp"):
        (run.path / name).mkdir()
    run.writer(0)
    assert {path.name for path in run.path.glob("*.tmp")} == {"part-00001-00000.parquet.0b.tmp", f"{NOTES}.0c.tmp"}
    run.begin(OWN, notes)
    assert {path.name for path in run.path.glob("*.tmp")} == {"part-00001-00000.parquet.0b.tmp"}


def test_manifests_and_shards_are_checked(run):
    run.writer(0).write(rows(0))
    told = json.loads((run.path / MANIFEST).read_text())
    sealed.pq.write_table(rows(0), run.path / "part-00000-00000.parquet")
    with pytest.raises(DataError, match="has no digest of its rows"):
        read(run)
    (run.path / MANIFEST).write_text(json.dumps({**told, "of": {}}))
    with pytest.raises(ConfigError, match="its digest isn't that of what it says"):
        run.manifest()
    del told["digest"]
    (run.path / MANIFEST).write_text(json.dumps({**told, "of": 1}))
    with pytest.raises(ConfigError, match="of is 1, expected an object"):
        run.manifest()
    (run.path / MANIFEST).unlink()
    with pytest.raises(ConfigError, match=r"has no manifest\.json, so no study\. Make one\."):
        run.manifest()


def test_differences_are_told_entry_by_entry():
    stored = {"host": {"dim": 8, "name": "x"}, "seed": 0, "old": 1}
    now = {"host": {"dim": 8, "name": "y"}, "seed": 0, "new": 2}
    assert differences(stored, now) == [
        "host.name: 'x' stored, 'y' now",
        "old: 1 stored, None now",
        "new: None stored, 2 now",
    ]
    assert differences(now, now) == []
