"""Files from anyone, read as data only: first their size, then their structure, then what they say.

JSON, YAML, safetensors and Parquet files that a person got from somewhere pass through here. Nothing in them is run:
no pickles, no YAML tags. Whatever is wrong with a file ends in one of this library's errors, which names the file, what
was found, what was expected and how to mend it; an exception of the libraries beneath never gets out.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError, safe_open

from tokenflex.errors import ConfigError
from tokenflex.files import bare_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from torch import Tensor

LARGEST_TEXT = 64 * 2**20
"""Bytes of a JSON or YAML file; descriptions, manifests and recipes are far smaller."""
DEEPEST = 64
"""Objects and lists inside one another."""
LARGEST_SETTINGS = 4 * 2**20
"""Bytes of a file of settings: a recipe, a description of parts, a configuration."""
LARGEST_HEADER = 32 * 2**20
"""Bytes of a safetensors header; those of models with 100,000 tensors have 15 million."""
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64,
}  # fmt: skip
"""Bits of one number, by the format's words for types."""
KINDS = {"BOOL": "boolean", **dict.fromkeys(("F16", "BF16", "F32", "F64"), "float"),
         **dict.fromkeys(("U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"), "integer")}  # fmt: skip
"""What kind of number a type is; weights may be of another type of the same kind than a model has."""

Kind = Callable[[str], Exception]


def own_file(folder: Path, name: str, error: Kind = ConfigError) -> Path:
    """The file of that name directly in a folder, which must not lead elsewhere through a link.

    In a cache of the model hub, files of a ``snapshots`` folder are links into the ``blobs`` of the same repository;
    those are taken.

    Raises:
        error: the name has a path, or the file is a link to a place outside the folder.
    """
    try:
        path = folder / bare_name(name)
        base, real = folder.resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError) as problem:
        raise error(f"{name!r} can't be a file of {str(folder)!r}: {problem}. Use the name alone.") from problem
    blobs = base.parent.parent / "blobs" if base.parent.name == "snapshots" else None
    if real.parent not in (base, blobs):
        raise error(f"{path} is a link to {str(real)!r}, outside its folder. Copy the file itself into the folder.")
    return path


def require_file(path: Path, error: Kind = ConfigError) -> None:
    """Refuse what isn't a file with bytes: a folder, a pipe (which would never end), nothing.

    Raises:
        error: it is that.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as problem:
        raise error(f"{path} can't be read: {problem}. Check its name and its permissions.") from problem
    if not stat.S_ISREG(mode):
        raise error(f"{path} is no file but a folder, pipe or device. Put the file itself there.")


def text(path: Path, error: Kind = ConfigError, largest: int = LARGEST_TEXT) -> str:
    """A UTF-8 file's text.

    Raises:
        error: it is missing, no file, larger than ``largest`` bytes, unreadable, or isn't UTF-8.
    """
    require_file(path, error)
    try:
        size = path.stat().st_size
        if size > largest:
            raise error(
                f"{path} has {size:,} bytes; at most {largest:,} are read as text. It is damaged, or isn't that file."
            )
        with path.open("rb") as file:
            content = file.read(size + 1)
    except OSError as problem:
        raise error(f"{path} can't be read: {problem}. Check its name and its permissions.") from problem
    return decoded(content, str(path), error)


def decoded(content: bytes, where: str, error: Kind = ConfigError) -> str:
    """Text of UTF-8 bytes.

    Raises:
        error: they aren't UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(
            f"{where} isn't UTF-8: byte {content[problem.start]:#04x} at {problem.start}. It is damaged, or in another "
            "encoding; get it again, or save it as UTF-8."
        ) from problem


def json_file(path: Path, error: Kind = ConfigError, largest: int = LARGEST_TEXT) -> Any:
    """What a JSON file holds; see `text` and `json_text` for what is refused."""
    return json_text(text(path, error, largest), str(path), error)


def json_text(content: str, where: str, error: Kind = ConfigError) -> Any:
    """What a JSON text says.

    Args:
        where: the file or line, for messages.

    Raises:
        error: it isn't JSON, a key stands twice in one object, a number isn't finite, it is nested more than
            ``DEEPEST`` deep, or a text has half a surrogate pair.
    """

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in pairs:
            if key in made:
                raise error(f"{where}: the key {key!r} stands twice in one object. Keep the one that is meant.")
            made[key] = value
        return made

    def infinite(word: str) -> Any:
        raise error(f"{where}: the value {word} isn't a finite number. Put a number there.")

    def real(word: str) -> float:
        number = float(word)
        return number if abs(number) != float("inf") else infinite(word)

    try:
        found = json.loads(content, object_pairs_hook=unique, parse_constant=infinite, parse_float=real)
    except RecursionError as problem:
        raise error(f"{where} is nested too deeply; at most {DEEPEST} levels are read. It is damaged.") from problem
    except (ValueError, MemoryError) as problem:
        if isinstance(problem, ConfigError) or type(problem) is type(error("")):
            raise
        raise error(f"{where} isn't valid JSON: {problem}. Mend it, or get it again.") from problem
    _require_plain(found, where, error)
    return found


def yaml_text(content: str, where: str, error: Kind = ConfigError) -> Any:
    """What a YAML text says: plain data, no tags that make objects, no aliases.

    Raises:
        error: it isn't YAML, has an alias or a tag, a key stands twice, or it is nested too deeply.
    """
    try:
        found = yaml.load(content, Loader=_Plain)
    except RecursionError as problem:
        raise error(f"{where} is nested too deeply; at most {DEEPEST} levels are read.") from problem
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as problem:
        raise error(f"{where} isn't valid YAML: {problem}") from problem
    _require_plain(found, where, error)
    return found


def _require_plain(found: Any, where: str, error: Kind) -> None:
    """Refuse what isn't plain data, without recursion: what is too deep for that must be found, too."""
    todo: list[tuple[Any, int]] = [(found, 0)]
    while todo:
        value, depth = todo.pop()
        if depth > DEEPEST:
            raise error(f"{where} is nested too deeply; at most {DEEPEST} levels are read. It is damaged.")
        if isinstance(value, str):
            _require_text(value, where, error)
        elif isinstance(value, Mapping):
            todo += [(key, depth) for key in value if isinstance(key, str)]
            todo += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, list):
            todo += [(one, depth + 1) for one in value]


def _require_text(value: str, where: str, error: Kind) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise error(f"{where}: the text {value[:60]!r} has half a surrogate pair, which no UTF-8 holds.") from None


class _Plain(yaml.SafeLoader):
    """YAML's plain data; a repeated key and an alias are errors."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: aliases (*name) aren't read; write the value out.")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.YAMLError(
                    f"line {key.start_mark.line + 1}: the key {name!r} stands twice. Keep the one that is meant."
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Entry:
    """What a safetensors header says of one tensor.

    Attributes:
        dtype: the format's word for its type, such as ``F32``.
        shape: its sizes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def kind(self) -> str:
        """``float``, ``integer`` or ``boolean``; empty for types of fewer than 16 bits that are for one purpose."""
        return KINDS.get(self.dtype, "")


def tensor_names(path: Path, error: Kind = ConfigError) -> tuple[dict[str, str], dict[str, Entry]]:
    """A safetensors file's metadata, and its entries by name, from its header alone.

    Raises:
        error: it is missing, shorter or longer than its header says, isn't safetensors, or a name stands twice.
    """
    require_file(path, error)
    try:
        with path.open("rb") as file:
            return _header(file, path, error)
    except OSError as problem:
        raise error(f"{path} can't be read: {problem}. Check its name and its permissions.") from problem


def tensors_once(
    path: Path, accept: Callable[[dict[str, str], dict[str, Entry]], None], error: Kind = ConfigError
) -> "tuple[dict[str, str], dict[str, Tensor], str]":
    """All of a safetensors file as it is at one moment: its metadata, tensors, and SHA-256 in hexadecimal.

    Args:
        accept: is called with metadata and entries before any tensor is read; what it raises gets out.

    Raises:
        error: see `tensor_names`.
    """
    from safetensors.torch import load

    require_file(path, error)
    try:
        with path.open("rb") as file:
            metadata, entries = _header(file, path, error)
            accept(dict(metadata), dict(entries))
            file.seek(0)
            content = file.read()
            return metadata, load(content), hashlib.sha256(content).hexdigest()
    except (OSError, SafetensorError, KeyError, AttributeError, TypeError, MemoryError, RuntimeError) as problem:
        raise error(f"{path} can't be read as safetensors: {problem}. Save or download it again.") from problem


def _header(file: Any, path: Path, error: Kind) -> tuple[dict[str, str], dict[str, Entry]]:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(LARGEST_HEADER, size - 8):
        raise error(
            f"{path} isn't safetensors: it has {size:,} bytes, and its first 8 say that a header of {length:,} "
            f"bytes (at most {LARGEST_HEADER:,}) follows. It is cut short or of another format; get it again."
        )
    where = f"{path}: header"
    found = json_text(decoded(file.read(length), where, error), where, error)
    if not isinstance(found, dict):
        raise error(f"{where} is {type(found).__name__}, not an object. Save or download the file again.")
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise error(f"{path}: __metadata__ of the header isn't an object of texts. Save or download the file again.")
    places: list[tuple[int, int, str]] = []
    entries = {name: _entry(value, f"{path}: the tensor {name!r:.200}", places, error) for name, value in found.items()}
    end = 0
    for first, last, where in sorted(places):
        if first != end:
            raise error(f"{where} begins at byte {first:,}, expected {end:,}. The file is damaged; get it again.")
        end = last
    if end != size - 8 - length:
        raise error(
            f"{path} can't be read as safetensors: it has {size - 8 - length:,} bytes of tensors, its header says "
            f"{end:,}. It is cut short or damaged; get it again."
        )
    return metadata, entries


def _entry(value: Any, where: str, places: list[tuple[int, int, str]], error: Kind) -> Entry:
    """One entry, whose place in the file is added to ``places``."""

    def sizes(listed: Any) -> bool:
        return isinstance(listed, list) and len(listed) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in listed)

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise error(f"{where} is described by {value!r:.200}, expected dtype, shape and data_offsets. Get it again.")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise error(f"{where} has the type {dtype!r:.200}, expected one of {', '.join(BITS)}. Get the file again.")
    if not sizes(shape) or not sizes(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise error(f"{where} has shape {shape!r:.200} and offsets {offsets!r:.200}, expected sizes. Get it again.")
    if math.prod(shape) * BITS[dtype] != 8 * (offsets[1] - offsets[0]):
        raise error(
            f"{where} has {offsets[1] - offsets[0]:,} bytes, expected {math.prod(shape) * BITS[dtype] // 8:,} for "
            f"{dtype} of shape {tuple(shape)}. The file is damaged; get it again."
        )
    places.append((offsets[0], offsets[1], where))
    return Entry(dtype, tuple(shape))


@contextmanager
def safetensors_file(path: Path, error: Kind = ConfigError) -> "Iterator[Any]":
    """A safetensors file, open; what goes wrong while tensors are read from it is told as ours.

    Raises:
        error: see `tensor_names`; or the file isn't what its header says, or has a type of number that isn't known.
    """
    tensor_names(path, error)
    try:
        with safe_open(path, "pt") as held:
            yield held
    except (OSError, SafetensorError, KeyError, AttributeError, TypeError, ArithmeticError, MemoryError) as problem:
        raise error(f"{path} can't be read as safetensors: {problem}. Save or download it again.") from problem


def tensors(path: Path, error: Kind = ConfigError) -> "dict[str, Tensor]":
    """All tensors of a safetensors file, by name.

    Raises:
        error: see `safetensors_file`.
    """
    with safetensors_file(path, error) as held:
        return {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 (safe_open is no mapping)


def table(
    path: Path,
    schema: "pa.Schema",
    error: Kind = ConfigError,
    optional: Sequence[str] = (),
    nullable: Sequence[str] = (),
) -> "pa.Table":
    """The columns of a Parquet file that ``schema`` names, each of its type; checksums of pages are checked.

    Args:
        optional: columns that may be missing; they are null then.
        nullable: columns that may hold nulls; the optional ones may.

    Raises:
        error: it can't be read, a column is missing, unknown, doubled or of another type, or holds a null.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = list(file.schema_arrow.names)
            missing = [name for name in schema.names if name not in names and name not in optional]
            unknown = sorted({name for name in names if name not in schema.names or names.count(name) > 1})
            if missing or unknown:
                raise error(
                    f"{path}: missing column(s) {missing}, unknown or doubled column(s) {unknown}; expected "
                    f"{schema.names}. It was changed, or written by another version of tokenflex."
                )
            read = file.read()
        for name in schema.names:
            if name not in names:
                read = read.append_column(name, pa.nulls(len(read), schema.field(name).type))
        read = read.select(schema.names).cast(schema)
        read.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, TypeError, MemoryError, OverflowError) as problem:
        if type(problem) is type(error("")):
            raise
        raise error(f"{path} can't be read as Parquet: {problem}. Get it again, or make it again.") from problem
    empty = [n for n in schema.names if n not in (*optional, *nullable) and read[n].null_count]
    if empty:
        raise error(f"{path}: column(s) {empty} hold nulls, and need a value in every row. Make the file again.")
    return read
