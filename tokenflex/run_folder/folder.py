"""A folder that a run fills, another run goes on with, and anyone reads.

``manifest.json``             what made it, with a digest of itself; a run that goes on must be of the same
``part-RANK-NUMBER.parquet``  a shard: rows that one process wrote, with a digest; other files of the same stem belong
                              to it, and are there before it is
other files                   written once, before the manifest, such as weights or questions

What is particular to one kind of run stays with it: the columns, what a manifest must say, what is still missing, and
the summary (`tokenflex.training.store`, `tokenflex.evaluation.records`).

A file appears as a whole or not at all, so a run that was killed loses what it hadn't written and nothing else. Shards
are numbered and have the rank of their process in their names, so processes never write the same file, and runs with
processes of the same rank take turns (`RunFolder.alone`). Where rows of several shards answer the same question, the
one in the first shard, by name, counts. All files are read as data that may come from anyone (see
`tokenflex.run_folder.sealed`).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tokenflex.errors import ConfigError
from tokenflex.files import as_path, locked, sweep, whole, write_whole
from tokenflex.run_folder import sealed

MANIFEST = "manifest.json"
SHARDS = "part-*.parquet"
Manifest = dict[str, Any]
Write = Callable[[Path], None]
"""Writes a file under the name that it is given."""


@dataclass(frozen=True)
class RunKind:
    """What is particular to the folders of one kind of run.

    Attributes:
        version: the ``format`` of their manifests; other versions are refused.
        without: for the message about a folder without a manifest: what it has none of, and how to make it, as in ``"no
            feedback. Make it with 'tokenflex feedback RECIPE'."``
        made: for the message about a folder of another run: how it was made, as in ``"was scored with"``.
        instead: for the same message: what to do instead of going back to that run, as in ``"choose another --out"``.
        require: refuses, with `ConfigError`, a manifest that doesn't say what it must; is given the manifest and its
            path as a text.
        compared: gives, of the manifest that is there and of that of a run, the entries in which both must be equal.
        once: names of the files that are written once, before the manifest.
    """

    version: int
    without: str
    made: str
    instead: str
    require: Callable[[Manifest, str], None]
    compared: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[Mapping[str, Any], Mapping[str, Any]]]
    once: tuple[str, ...]


@dataclass(frozen=True)
class Shard:
    """The rows that one process wrote at a time, read.

    Attributes:
        path: of its Parquet file.
        table: its rows.
        metadata: what else the file says, by the keys that were asked for.
    """

    path: Path
    table: pa.Table
    metadata: dict[str, str]


class RunFolder:
    """A folder of one kind of run; it needn't exist yet.

    Args:
        folder: where it lies.
        kind: what is particular to it.

    Raises:
        ConfigError: ``folder`` is neither a text nor a path.
    """

    def __init__(self, folder: str | os.PathLike[str], kind: RunKind) -> None:
        self.path, self.kind = as_path(folder), kind

    @property
    def begun(self) -> bool:
        """Whether a run has begun here: there is a manifest."""
        return (self.path / MANIFEST).exists()

    def begin(self, manifest: Mapping[str, Any], once: Callable[[], Mapping[str, Write]]) -> None:
        """Start a run here, or make sure that the one that is here can be gone on with.

        Args:
            manifest: what makes this run, JSON-ready, without ``format`` and digest.
            once: gives, by their names, what writes the files that are written once; called only where there is no
                manifest yet.

        Raises:
            ConfigError: another run made the folder, and the message says what differs; or shards lie here that no
                manifest tells anything about.
            WriteError: a file can't be written, as on a full disk.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            for name in (MANIFEST, *self.kind.once):
                sweep(self.path, name)
            if self.begun:
                self.require_same(self.manifest()[0], manifest)
                return
            self._require_no_shards()
            for name, write in once().items():
                with whole(self.path / name) as scratch:
                    write(scratch)
            write_whole(self.path / MANIFEST, sealed.manifest_text({"format": self.kind.version, **manifest}))

    def _require_no_shards(self) -> None:
        found = sorted(path.name for path in self.path.glob(SHARDS))
        if found:
            raise ConfigError(
                f"{self.path} has {len(found)} file(s) such as {found[0]} and no {MANIFEST} that says what made them. "
                "Put it back, or give a folder of its own."
            )

    def manifest(self) -> tuple[Manifest, bool]:
        """What made the folder, and whether that has a digest, as those of older versions haven't.

        Raises:
            ConfigError: there is no manifest, it is of another version, was changed, or doesn't say what it must.
        """
        found, has_digest = sealed.read_manifest(self.path, MANIFEST, self.kind.version, self.kind.without)
        self.kind.require(found, str(self.path / MANIFEST))
        return found, has_digest

    def require_same(self, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse to mix what two runs make.

        Args:
            stored: the folder's manifest.
            now: what makes a run now.

        Raises:
            ConfigError: they aren't the same; the message says what differs.
        """
        found = differences(*self.kind.compared(stored, now))
        if found:
            raise ConfigError(
                f"{self.path} {self.kind.made} something else: {'; '.join(found)}. Go back to that, or "
                f"{self.kind.instead}."
            )

    def alone(self, share: str = "", *, waiting: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
        """Keep other runs on this machine out of the folder; they wait, each in its own `alone`.

        Args:
            share: runs of different shares, such as ranks, don't wait for each other.
            waiting: called once if another run is in the folder.
        """
        return locked(self.path, share, waiting=waiting)

    def shards(
        self,
        schema: pa.Schema,
        *,
        sure: bool,
        optional: Sequence[str] = (),
        nullable: Sequence[str] = (),
        metadata: Sequence[str] = (),
    ) -> Iterator[Shard]:
        """Every shard, of whatever process, in the order of their names.

        Args:
            schema: the columns.
            sure: whether they must have digests: those beside a manifest with a digest do.
            optional: columns that may be missing; they are null then.
            nullable: columns that may hold nulls.
            metadata: keys of the metadata that were written, all of them, since the digest covers them.

        Raises:
            DataError: a file is damaged, was changed, leads out of the folder, or has other columns.
        """
        options = {"optional": optional, "nullable": nullable, "metadata": metadata}
        for path in sorted(self.path.glob(SHARDS)):
            yield Shard(path, *sealed.read_table(self.path, path.name, schema, sure=sure, **options))

    def writer(self, rank: int) -> "ShardWriter":
        """What adds shards, for one process; what one of its rank left half-written is removed.

        Args:
            rank: of the process; part of its files' names.
        """
        return ShardWriter(self.path, rank)


class ShardWriter:
    """Adds shards to a run's folder; one writer per process (see `RunFolder.writer`).

    Attributes:
        number: of the next shard; part of its files' names.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._own = folder, f"part-{rank:05d}-"
        sweep(folder, f"{self._own}*")
        done = [int(path.stem.rsplit("-", 1)[1]) for path in folder.glob(f"{self._own}*.parquet")]
        self.number = max(done, default=-1) + 1

    def write(
        self, table: pa.Table, metadata: Mapping[str, str] | None = None, beside: Mapping[str, Write] | None = None
    ) -> None:
        """Write one shard, as a whole or not at all.

        Args:
            table: its rows.
            metadata: what else its Parquet file is to say.
            beside: suffix -> what writes a file that belongs to it; these are there before the Parquet file is.

        Raises:
            WriteError: a file can't be written, as on a full disk.
        """
        stem = f"{self._own}{self.number:05d}"
        for suffix, write in (beside or {}).items():
            with whole(self._folder / f"{stem}{suffix}") as scratch:
                write(scratch)
        with whole(self._folder / f"{stem}.parquet") as scratch:
            sealed.write_table(table, scratch, metadata)
        self.number += 1


def differences(stored: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> list[str]:
    """What differs, entry by entry, as ``host.dim: 32 stored, 64 now``.

    Args:
        stored: what is in a file.
        now: what is to be compared with it.
        at: written before every name.
    """
    found: list[str] = []
    for key in dict.fromkeys([*stored, *now]):
        one, other, name = stored.get(key), now.get(key), f"{at}{key if key.isprintable() else repr(key)}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{name}.")
        elif one != other:
            found.append(f"{name}: {one!r} stored, {other!r} now")
    return found
