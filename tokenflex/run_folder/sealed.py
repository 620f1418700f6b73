"""Manifests and tables that can tell whether they are as they were written.

A manifest has a digest of everything else in it, under ``digest``; a table has one of its values, under the same key of
its schema's metadata, and its pages have checksums. Files of versions that wrote neither are read, too: what can be
seen from what they say is checked all the same.
"""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenflex.errors import ConfigError, DataError
from tokenflex.reading import json_file, own_file
from tokenflex.reading import table as plain_table

DIGEST = "digest"
LARGEST_COUNT = 2**31
pc: Any = importlib.import_module("pyarrow.compute")  # its functions are made when it is imported
AGAIN = "It was changed since it was written. Get it again, or make it again."
Rule = tuple[Callable[[Any], bool], str]
"""What a value must be: the check, and how messages say it."""


def counted(least: int, below: int = LARGEST_COUNT) -> Rule:
    """A whole number from ``least`` on."""
    return lambda value: type(value) is int and least <= value < below, f"a whole number from {least} to {below - 1}"


def one_of(*known: Any) -> Rule:
    """One of these values, of the same type."""
    return lambda value: any(value is one or (value == one and type(value) is type(one)) for one in known), (
        f"one of {', '.join(map(repr, known))}"
    )


TEXT: Rule = (lambda value: isinstance(value, str), "a text")
OBJECT: Rule = (lambda value: isinstance(value, dict), "an object")
SIDES: Rule = (
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(counted(1, 2**20)[0], value)),
    "two whole numbers above 0",
)


def require(found: Any, rules: Mapping[str, Rule], where: str, *, extra: bool = False) -> None:
    """Refuse an object whose values aren't what they must be.

    Args:
        rules: by key; a key ending in ``?`` may be missing.
        extra: whether further keys are allowed.

    Raises:
        ConfigError: names the key, what was found and what was expected.
    """
    if not isinstance(found, dict):
        raise ConfigError(f"{where} is {found!r:.100}, expected an object. {AGAIN}")
    known = {key.removesuffix("?"): rule for key, rule in rules.items()}
    missing = [key for key in rules if not key.endswith("?") and key not in found]
    unknown = [] if extra else [key for key in found if key not in known]
    if missing or unknown:
        raise ConfigError(f"{where}: missing key(s) {missing}, unknown key(s) {unknown!r:.300}. {AGAIN}")
    for key, (accepted, meaning) in known.items():
        if key in found and not accepted(found[key]):
            raise ConfigError(f"{where}: {key} is {found[key]!r:.100}, expected {meaning}. {AGAIN}")


def read_manifest(folder: Path, name: str, version: int, without: str) -> tuple[dict[str, Any], bool]:
    """A manifest as `manifest_text` wrote it, without its digest, and whether it had one.

    Tables beside a manifest with a digest have one, too; those of older versions, and what is added to them, may not.

    Args:
        version: the ``format`` that is read.
        without: what the folder has none of if the file is missing, and how to make it, for the message.

    Raises:
        ConfigError: there is none, it isn't JSON, it is of another version or was changed.
    """
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"{folder} has no {name}, so {without}")
    found = json_file(own_file(folder, name))
    stored_version = found.get("format") if isinstance(found, dict) else None
    if stored_version != version or type(stored_version) is not int:
        raise ConfigError(f"{path}: format {stored_version!r:.100} isn't known; this version reads {version}.")
    digest = found.pop(DIGEST, None)
    if digest is not None and digest != of_json(found):
        raise ConfigError(f"{path}: its digest isn't that of what it says. {AGAIN}")
    return found, digest is not None


def manifest_text(found: Mapping[str, Any]) -> str:
    """The text of a manifest, with its digest."""
    return json.dumps({**found, DIGEST: of_json(found)}, indent=2) + "\n"


def of_json(found: Any) -> str:
    """Digest of JSON-ready data, whatever the order of its keys."""
    return hashlib.blake2b(json.dumps(found, sort_keys=True).encode(), digest_size=16).hexdigest()


def write_table(table: pa.Table, target: Any, metadata: Mapping[str, str] | None = None) -> None:
    """Write a Parquet file with a digest of its values.

    Args:
        target: path or Arrow's buffer.
        metadata: what else its metadata is to say; the digest covers it.
    """
    metadata = dict(metadata or {})
    known = {**metadata, DIGEST: of_table(table, metadata)}
    pq.write_table(table.replace_schema_metadata(known), target, write_page_checksum=True)


def read_table(
    folder: Path,
    name: str,
    schema: pa.Schema,
    *,
    optional: Sequence[str] = (),
    nullable: Sequence[str] = (),
    metadata: Sequence[str] = (),
    sure: bool = False,
) -> tuple[pa.Table, dict[str, str]]:
    """A Parquet file directly in a folder, and what else its metadata says.

    Args:
        optional, nullable: as for `tokenflex.reading.table`.
        metadata: keys of the metadata that are read.
        sure: whether it must have a digest.

    Raises:
        DataError: it can't be read, isn't as it was written, or has other columns or nulls.
    """
    path = own_file(folder, name, DataError)
    if not path.is_file():
        raise DataError(f"{path} isn't a file. Get it again, or make it again.")
    read = plain_table(path, schema, DataError, optional, nullable)
    known = _metadata(path)
    for field in schema:
        if _has_nulls(read[field.name]):
            raise DataError(f"{path}: lists in the column {field.name!r} hold nulls. {AGAIN}")
    said = {key: known[key] for key in metadata if key in known}
    if sure and DIGEST not in known:
        raise DataError(f"{path} has no digest of its rows, and was written with one. {AGAIN}")
    if DIGEST in known and known[DIGEST] != of_table(read, said):
        raise DataError(f"{path}: its digest isn't that of its rows. {AGAIN}")
    return read, said


def _metadata(path: Path) -> dict[str, str]:
    try:
        found = pq.read_schema(path).metadata or {}
        return {key.decode(): value.decode() for key, value in found.items() if not key.startswith(b"ARROW:")}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}. Get it again, or make it again.") from error


def _has_nulls(column: Any) -> bool:
    """Whether lists of a column have nulls in them, at any depth."""
    if not _is_list(column.type):
        return False
    inner = pc.list_flatten(column)
    return inner.null_count > 0 or _has_nulls(inner)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def of_table(read: pa.Table, metadata: Mapping[str, str]) -> str:
    """Digest of a table's columns: names, types, values and their order; and of what its metadata tells."""
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name in read.column_names:
        column = read[name].combine_chunks()
        digest.update(f"{name} {column.type} {len(column)} ".encode())
        for piece in _pieces(column):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(column: Any) -> list[bytes]:
    """The bytes of an array's values: which are there, how long lists and texts are, and what they hold."""
    there = np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).tobytes()
    if _is_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        return [there, _numbers(lengths), *_pieces(pc.list_flatten(column))]
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        lengths = pc.fill_null(pc.binary_length(column), 0)
        values = (value.encode() if isinstance(value, str) else value for value in column.to_pylist())
        return [there, _numbers(lengths), b"".join(value for value in values if value is not None)]
    return [there, _numbers(column.fill_null(0))]


def _numbers(column: Any) -> bytes:
    return np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).tobytes()
