"""Damage to Parquet files and JSON Lines that keeps them readable: rows and values that are others than they were."""

import io
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.torture.damage import WORDS, WRONG, another, json_structure

Random = random.Random
Rows = list[dict[str, Any]]


def lines_structure(rng: Random, data: bytes) -> bytes:
    """One line changed as JSON, dropped, doubled, or put elsewhere."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    what = rng.randrange(8)
    if what == 0:
        del lines[place]
    elif what == 1:
        lines.insert(rng.randrange(len(lines)), lines[place])
    elif what == 2:
        rng.shuffle(lines)
    elif lines[place]:
        lines[place] = json_structure(rng, lines[place])
    return b"\n".join(lines)


def parquet_structure(rng: Random, data: bytes) -> bytes:
    """Rows dropped, doubled or shuffled, values and columns changed; written again, with what its metadata says or not.

    Whether pages and values are compressed, and in how many groups of rows, changes too.
    """
    table = pq.read_table(pa.BufferReader(data))
    metadata = rng.choice((table.schema.metadata, table.schema.metadata, None, {"digest": "0" * 32}))
    rows = table.to_pylist()
    made = rng.choice(CHANGES)(rng, rows, table.schema)
    if not isinstance(made, pa.Table):
        try:
            made = pa.Table.from_pylist(rows, schema=table.schema)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            told = [{key: str(value).encode("utf-8", "replace").decode() for key, value in row.items()} for row in rows]
            made = pa.Table.from_pylist(told)
    target = io.BytesIO()
    options: dict[str, Any] = {
        "compression": rng.choice(("none", "snappy", "zstd")),
        "row_group_size": rng.choice((1, 2, 999)),
    }
    pq.write_table(made.replace_schema_metadata(metadata), target, **options)
    return target.getvalue()


def _dropped(rng: Random, rows: Rows, schema: pa.Schema) -> None:
    del rows[rng.randrange(len(rows))]


def _doubled(rng: Random, rows: Rows, schema: pa.Schema) -> None:
    rows.insert(rng.randrange(len(rows) + 1), rng.choice(rows))


def _shuffled(rng: Random, rows: Rows, schema: pa.Schema) -> None:
    rng.shuffle(rows)


def _emptied(rng: Random, rows: Rows, schema: pa.Schema) -> None:
    rows.clear()


def _null_column(rng: Random, rows: Rows, schema: pa.Schema) -> None:
    name = rng.choice(schema.names)
    for row in rows:
        row[name] = None


def _null(rng: Random, rows: Rows, schema: pa.Schema) -> None:
    rng.choice(rows)[rng.choice(schema.names)] = None


def _other(rng: Random, rows: Rows, schema: pa.Schema) -> None:
    row, name = rng.choice(rows), rng.choice(schema.names)
    row[name] = another(rng, row[name]) if not isinstance(row[name], bytes) else row[name][::-1]


def _inside(rng: Random, rows: Rows, schema: pa.Schema) -> None:
    row, name = rng.choice(rows), rng.choice(schema.names)
    if isinstance(row[name], list) and row[name]:
        row[name] = list(row[name])
        place = rng.randrange(len(row[name]))
        row[name][place] = rng.choice((None, float("nan"), float("inf"), -1, 10**6, another(rng, row[name][place])))


def _odd(rng: Random, rows: Rows, schema: pa.Schema) -> None:
    rng.choice(rows)[rng.choice(schema.names)] = rng.choice((*WRONG, *WORDS[:-6], float("nan"), -(10**6)))


def _swapped(rng: Random, rows: Rows, schema: pa.Schema) -> None:
    """One column's values in another order."""
    name = rng.choice(schema.names)
    values = [row[name] for row in rows]
    rng.shuffle(values)
    for row, value in zip(rows, values, strict=True):
        row[name] = value


def _columns(rng: Random, rows: Rows, schema: pa.Schema) -> pa.Table:
    """A column that is gone, doubled, further, called otherwise or of another type."""
    table = pa.Table.from_pylist(rows, schema=schema)
    place = rng.randrange(len(schema))
    name, what = schema.names[place], rng.randrange(5)
    if what == 0:
        return table.drop_columns([name])
    if what == 1:
        return table.append_column(name, table[name])
    if what == 2:
        return table.append_column("more", pa.array(range(len(table))))
    if what == 3:
        return table.rename_columns([*schema.names[:place], name + "x", *schema.names[place + 1 :]])
    return table.set_column(place, name, pa.array([rng.choice(("x", "1")) for _ in rows]))


CHANGES: tuple[Callable[[Random, Rows, pa.Schema], Any], ...] = (
    _dropped, _doubled, _shuffled, _emptied, _null_column, _null, _other, _other, _inside, _odd, _swapped, _columns,
)  # fmt: skip
