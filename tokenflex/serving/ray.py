"""Offline, on many machines: actors for Ray Data, and a run over Parquet files that can be gone on with.

Rows are those that ``tokenflex evaluate`` reads (see `tokenflex.evaluation.questions`), without reference answers. A
row group of a file is a partition: what an actor takes at a time, and what is done again when it dies, so some hundreds
of rows are right. Actors load the model once. The driver writes every partition as a whole; what is written isn't done
again.

Written rows have the columns of what was read, less images and conversations, and

``row``                  place in the file
``answer``               text; null where there is an ``error``
``levels``               one per image
``visual_tokens``        what the language model saw of all images
``visual_tokens_full``   what it would have seen without TokenFlex
``error``                why the row couldn't be answered; null where it was
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenflex.errors import ConfigError, DataError
from tokenflex.files import as_path, locked, sweep, write_whole
from tokenflex.reading import json_file, own_file
from tokenflex.serving.actors import Answers, Engine, Requests, prompt

__all__ = ["Answers", "Engine", "Partition", "Requests", "Stage", "answer", "imported", "partitions", "prompt"]

FORMAT = 1
MANIFEST = "run.json"
OWN = ("partition", "row")
"""Columns that say where a row belongs."""
LOADED = ("model", "parts")
"""Settings that may be folders an actor loads; others, of images for example, may have millions of files."""
READING = 1
"""CPUs that are kept free of actors for tasks that read; without them such a pipeline stands still."""
ROWS = 32
"""Rows that are read at a time."""


@dataclass(frozen=True)
class Stage:
    """A pool of actors that map Arrow tables to Arrow tables.

    Attributes:
        actor: its class; rows may be changed and columns added, ``partition`` and ``row`` stay.
        settings: an actor is made with. Answers depend on them, so a run that is gone on with must have the same.
        actors: how many.
        cpus, gpus: of each.
        batch_size: rows that an actor is given at a time.
    """

    actor: type
    settings: Mapping[str, Any] = field(default_factory=dict)
    actors: int = 1
    cpus: float = 1
    gpus: float = 0
    batch_size: int = 8

    def __call__(self, dataset: Any) -> Any:
        """What the actors make of a dataset of ``ray.data``, as another one that isn't computed yet."""
        return dataset.map_batches(
            self.actor,
            fn_constructor_kwargs={name: _absolute(value) for name, value in self.settings.items()},
            compute=imported().data.ActorPoolStrategy(size=self.actors),
            batch_size=self.batch_size,
            batch_format="pyarrow",
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )

    def described(self) -> dict[str, Any]:
        """What answers depend on: the actor, its settings, and the files it loads, by size and time."""
        record: dict[str, Any] = {"actor": f"{self.actor.__module__}.{self.actor.__qualname__}"}
        for name, value in self.settings.items():
            record[name] = repr(_absolute(value))
            if name in LOADED and value is not None and Path(value).is_dir():
                files = [(file, file.stat()) for file in sorted(Path(value).iterdir()) if file.is_file()]
                record[f"{name}'s files"] = {file.name: [stat.st_size, stat.st_mtime_ns] for file, stat in files}
        return record


def imported() -> Any:
    """Ray with Ray Data.

    Raises:
        ConfigError: it isn't installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(f"this needs Ray Data ({error}): pip install 'tokenflex[ray]'.") from error
    return ray


@dataclass(frozen=True)
class Partition:
    """A row group of a Parquet file.

    Attributes:
        name: of the file it is written to.
        path: of the file it is read from.
        group: its number in that file.
        start: place of its first row in that file.
        rows: how many it has.
    """

    name: str
    path: str
    group: int
    start: int
    rows: int


def partitions(source: str | os.PathLike[str]) -> list[Partition]:
    """The partitions of a Parquet file, or of all such files in a folder, without empty ones.

    Raises:
        DataError: there are none, or a file can't be read.
    """
    path = Path(source).absolute()
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    found = list[Partition]()
    for file in files:
        try:
            metadata = pq.read_metadata(file)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file} can't be read as Parquet: {error}") from error
        start = 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if rows:
                found.append(Partition(f"{file.stem}-{group:05d}.parquet", str(file), group, start, rows))
            start += rows
    if not found:
        raise DataError(f"{path} has no rows; give a Parquet file or a folder of them.")
    return found


def answer(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], stages: Sequence[Stage]
) -> dict[str, dict[int, str]]:
    """Answer what isn't answered yet.

    Ray is started where it isn't running. Several machines need a file system they share for ``source``, images that
    are given by path, and models; ``folder`` is written by this process alone.

    Args:
        source: see `partitions`.
        folder: of the answers, one Parquet file per partition; made, or gone on with.
        stages: `Answers` alone; or `Requests`, whose rows go on to an `Engine`.

    Returns:
        Rows that couldn't be answered: partition -> place in the file -> why; also of partitions done before.

    Raises:
        ConfigError: Ray isn't installed, the actors leave no CPU to read with, or the folder holds answers to something
            else, or by something else.
        DataError: the source can't be read, or answers are missing at the end.
    """
    ray, out, splits = imported(), as_path(folder).absolute(), partitions(source)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, "ray"):
        _begin(out, splits, stages)
        sweep(out, "*.parquet")
        todo = {one.name: one for one in splits if not (out / one.name).exists()}
        if todo:
            if not ray.is_initialized():
                ray.init()
            _require_room(ray, stages)
            dataset = _read(ray, list(todo.values()))
            for stage in stages:
                dataset = stage(dataset)
            _written(dataset, todo, out)
    return {name: errors for one in splits for name, errors in [(one.name, _errors(out / one.name))] if errors}


def _begin(out: Path, splits: Sequence[Partition], stages: Sequence[Stage]) -> None:
    """Write down what is asked, or check that it is what was asked before.

    Raises:
        ConfigError: it isn't.
    """
    asked = {
        "format": FORMAT,
        "partitions": {one.name: one.rows for one in splits},
        "stages": [stage.described() for stage in stages],
    }
    path = out / MANIFEST
    if not path.exists():
        if any(out.glob("*.parquet")):
            raise ConfigError(f"{out} has Parquet files and no {MANIFEST}; give a folder of its own for the answers.")
        write_whole(path, json.dumps(asked, indent=2))
        return
    before = json_file(own_file(out, MANIFEST))
    if before != asked:
        listed = "; ".join(_differences(before, asked))
        raise ConfigError(
            f"{out} holds answers to something else: {listed}. Give another folder, or what was given then."
        )


def _differences(before: Any, asked: Any, name: str = "") -> Iterator[str]:
    """What differs between two values as JSON has them, as clauses."""
    if isinstance(before, list) and isinstance(asked, list):
        before, asked = dict(enumerate(before)), dict(enumerate(asked))
    if isinstance(before, dict) and isinstance(asked, dict):
        for key in {**before, **asked}:
            if before.get(key) != asked.get(key):
                yield from _differences(before.get(key), asked.get(key), f"{name} {key}".strip())
    else:
        yield f"{name} was {before!r:.100} and is {asked!r:.100}"


def _require_room(ray: Any, stages: Sequence[Stage]) -> None:
    """Refuse actors that would take every CPU: nothing could be read, and they would wait for ever.

    Raises:
        ConfigError: they would.
    """
    there = ray.cluster_resources()
    for name, needed, more in (
        ("CPU", sum(one.actors * one.cpus for one in stages) + READING, f", {READING} of them to read with"),
        ("GPU", sum(one.actors * one.gpus for one in stages), ""),
    ):
        if needed > there.get(name, 0):
            raise ConfigError(
                f"{needed:g} {name}s are needed{more}, and Ray has {there.get(name, 0):g}. Use fewer actors, or give "
                f"each less; on one machine ray.init(num_{name.lower()}s={needed:g}) may claim more than there are."
            )


def _read(ray: Any, todo: Sequence[Partition]) -> Any:
    """The rows of partitions, as a dataset."""
    items = ray.data.from_items([asdict(one) for one in todo], override_num_blocks=min(len(todo), 200))
    return items.map_batches(_rows, batch_size=1, batch_format="pyarrow", num_cpus=READING)


def _rows(table: pa.Table) -> Iterator[pa.Table]:
    for item in table.to_pylist():
        place = item["start"]
        with pq.ParquetFile(item["path"]) as file:
            for batch in file.iter_batches(batch_size=ROWS, row_groups=[item["group"]]):
                rows = pa.Table.from_batches([batch]).replace_schema_metadata(None)
                own = [name for name in rows.column_names if name in OWN]
                count = rows.num_rows
                yield (
                    rows.drop_columns(own)
                    .append_column("partition", pa.array([item["name"]] * count, pa.string()))
                    .append_column("row", pa.array(range(place, place + count), pa.int64()))
                )
                place += count


def _written(dataset: Any, todo: Mapping[str, Partition], out: Path) -> None:
    """Write every partition as soon as all its rows are there.

    Raises:
        DataError: some never came.
    """
    waiting: dict[str, dict[int, pa.Table]] = {name: {} for name in todo}
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for i, (name, row) in enumerate(zip(table["partition"].to_pylist(), table["row"].to_pylist(), strict=True)):
            if name in waiting:
                waiting[name].setdefault(row, table.slice(i, 1))
        for name in set(table["partition"].to_pylist()) & set(waiting):
            if len(waiting[name]) == todo[name].rows:
                _write(out / name, waiting.pop(name))
    if waiting:
        lost = ", ".join(f"{name} lacks {todo[name].rows - len(rows)}" for name, rows in waiting.items())
        raise DataError(f"rows were read and never answered: {lost}. Run the same again; it goes on where it stopped.")


def _write(path: Path, rows: Mapping[int, pa.Table]) -> None:
    whole = pa.concat_tables([rows[row] for row in sorted(rows)], promote_options="permissive").combine_chunks()
    sink = pa.BufferOutputStream()
    pq.write_table(whole.drop_columns(["partition"]), sink)
    write_whole(path, sink.getvalue().to_pybytes())


def _errors(path: Path) -> dict[int, str]:
    try:
        table = pq.read_table(path, columns=["row", "error"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}. Remove it, and run the same again.") from error
    pairs = zip(table["row"].to_pylist(), table["error"].to_pylist(), strict=True)
    return {row: error for row, error in pairs if error is not None}


def _absolute(value: Any) -> Any:
    """The same path from wherever an actor starts, where it is one that is there."""
    there = isinstance(value, str | os.PathLike) and os.fspath(value) and Path(value).exists()
    return str(Path(value).absolute()) if there else value
