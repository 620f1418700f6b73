"""Damage to files: bytes, the structure of JSON, YAML and safetensors, and what stands in the place of a file.

Every function takes a seeded ``random.Random``, so that the same seed gives the same damage.
"""

import copy
import io
import json
import os
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

Random = random.Random
Bytes = Callable[[Random, bytes], bytes]
NESTED = 100_000
WRONG: tuple[Any, ...] = (
    3, -1, 0, 1.5, "x", "", [], {}, None, True, "1", [3], {"a": 1}, [[2, 2]], ["x", None], -0.25, 2.0, "2",
)  # fmt: skip
HUGE: tuple[Any, ...] = (10**9, 10**12, 2**63, 10**30, -(10**9), 1e308, -1e308, 1e-320, 10**400, 999999, 65537)
WORDS = (
    "../x", "/etc/passwd", "a/b", "pkg.module:Class", "..", ".", "C:\\x", "a\x00b", "x" * 5000, "\ud800", "ä\u202e",
    "mlp999999x_gelu", "eval(1)", "~", "hf://a/b", "__import__('os')",
)  # fmt: skip


# ---- bytes


def flip(rng: Random, data: bytes) -> bytes:
    """One bit."""
    if not data:
        return b"\x01"
    made = bytearray(data)
    made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def overwrite(rng: Random, data: bytes) -> bytes:
    """A few bytes by random ones."""
    made = bytearray(data)
    for _ in range(min(len(made), rng.randint(1, 8))):
        made[rng.randrange(len(made))] = rng.randrange(256)
    return bytes(made)


def truncate(rng: Random, data: bytes) -> bytes:
    """Cut off at a random place, often near an end."""
    return data[: rng.choice((0, 1, 7, 8, 9, len(data) // 2, len(data) - 1, rng.randrange(len(data) + 1)))]


def extend(rng: Random, data: bytes) -> bytes:
    """More at the end."""
    return data + rng.choice((b"\x00", b"\n{}", b"x" * 100, data, rng.randbytes(rng.randint(1, 5000))))


def zeroed(rng: Random, data: bytes) -> bytes:
    """A run of zeros, as of a sector that was lost."""
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 4, 16, 512, 4096)))
    return data[:start] + bytes(end - start) + data[end:]


def spliced(rng: Random, data: bytes) -> bytes:
    """Something inserted, or a run removed."""
    start = rng.randrange(len(data) + 1)
    if rng.random() < 0.5:
        return data[:start] + rng.randbytes(rng.randint(1, 64)) + data[start:]
    return data[:start] + data[start + rng.randint(1, 64) :]


def swapped(rng: Random, data: bytes) -> bytes:
    """Two blocks that changed places."""
    size = rng.choice((1, 4, 64))
    if len(data) < 2 * size:
        return data[::-1]
    one = rng.randrange(len(data) - 2 * size + 1)
    two = rng.randrange(one + size, len(data) - size + 1)
    return data[:one] + data[two : two + size] + data[one + size : two] + data[one : one + size] + data[two + size :]


def other_format(rng: Random, data: bytes) -> bytes:
    """Something else under the name: a pickle, an archive, text of another encoding, brackets without end."""
    return rng.choice((
        pickle.dumps({"a": [1, 2]}), b"PK\x03\x04" + bytes(60), b"\x89PNG\r\n\x1a\n", b"", b"[]", b"null", b"3", b'"x"',
        data.decode("latin1").encode("utf-16"), b"[" * NESTED, b'{"a":' * NESTED, b"\xff\xfe", b"- " * 5000,
        b"!!python/object/apply:os.system ['true']", b"\x08\0\0\0\0\0\0\0{}      ",
        struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"{}",
    ))  # fmt: skip


BYTES: tuple[Bytes, ...] = (flip, flip, overwrite, truncate, extend, zeroed, spliced, swapped, other_format)


# ---- plain data


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all that is inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(rng: Random, value: Any) -> Any:
    """Plain data with one thing changed; a `Twice` in it stands for a key that is there two times."""
    made = copy.deepcopy(value)
    paths = list(places(made))
    if not paths or rng.random() < 0.02:
        return rng.choice(WRONG)
    path = rng.choice(paths)
    owner = made
    for key in path[:-1]:
        owner = owner[key]
    _change(rng, owner, path[-1])
    return made


class Twice(str):
    """A key that is written two times."""


def _change(rng: Random, owner: Any, key: Any) -> None:
    what = rng.randrange(12)
    old = owner[key]
    if what == 0:
        del owner[key]
    elif what == 1 and isinstance(owner, dict):
        owner[Twice(key)] = owner.pop(key)
    elif what == 2 and isinstance(owner, dict):
        owner[rng.choice((key + "x", key.upper(), f"../{key}", "", "__class__", "\ud800", key[:-1]))] = owner.pop(key)
    elif what == 3:
        owner[key] = rng.choice(HUGE)
    elif what == 4:
        owner[key] = rng.choice((float("nan"), float("inf"), float("-inf")))
    elif what == 5:
        owner[key] = rng.choice(WORDS)
    elif what == 6:
        owner[key] = rng.choice(([old], {"x": old}, [old, old], str(old)))
    elif what == 7 and isinstance(owner, dict):
        owner[rng.choice(("extra", "auto_map", "code", "_target_", "trust_remote_code", "weights"))] = rng.choice(WRONG)
    elif what in (8, 9):
        owner[key] = another(rng, old)
    else:
        owner[key] = rng.choice(WRONG)


def another(rng: Random, old: Any) -> Any:
    """Another value of the same type."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.choice((old + 1, old - 1, old * 2, 0, -old, rng.randrange(100)))
    if isinstance(old, float):
        return rng.choice((old / 2, old * 2, 1 - old, -old, rng.random(), 0.0))
    if isinstance(old, str):
        place = rng.randrange(len(old) + 1)
        return rng.choice((old[:place] + rng.choice("ax0_") + old[place + 1 :], old[:-1], old + "2"))
    if isinstance(old, list):
        return rng.choice((old[::-1], old[1:], [*old, *old[:1]]))
    return None if isinstance(old, dict) else rng.choice(WRONG)


def json_of(value: Any) -> str:
    """JSON as it may stand in a hostile file: keys twice, NaN, half surrogates."""
    if isinstance(value, dict):
        items = [f"{json.dumps(str(key))}: {json_of(inner)}" for key, inner in value.items()]
        items += [f"{json.dumps(str(key))}: {json_of(value[key])}" for key in value if isinstance(key, Twice)]
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(json_of, value)) + "]"
    return json.dumps(value)


def json_structure(rng: Random, data: bytes) -> bytes:
    """One thing changed in a JSON file; now and then two."""
    value = json.loads(data)
    for _ in range(1 + (rng.random() < 0.2)):
        value = changed(rng, value)
    return json_of(value).encode("utf-8", "surrogatepass")


def yaml_structure(rng: Random, data: bytes) -> bytes:
    """One thing changed in a YAML file: as for JSON, and tags, aliases and keys twice."""
    value = yaml.safe_load(data)
    lines = data.decode().splitlines()
    what = rng.randrange(10)
    line = rng.choice(lines)
    key = line.partition(":")[0]
    if what == 0:
        return f"{data.decode()}\n{rng.choice(lines)}\n".encode()
    if what == 1:
        tag = rng.choice(
            ("!!python/object/apply:os.system ['true']", "!!binary aaaa", "!mine x", "!!set {a}", "!!int x")
        )
        return "\n".join([*(one for one in lines if one != line), f"{key}: {tag}"]).encode()
    if what == 2:
        return f"a: &a [1, 2]\n{data.decode()}\nb: *a\n".encode()
    if what == 3:
        bomb = "\n".join(["x0: &x0 [a, a]", *(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]" for n in range(1, 40))])
        return bomb.encode()
    if what == 4:
        odd = (
            ".nan",
            ".inf",
            "2001-01-01",
            "1_000",
            "0x10",
            "~",
            "yes",
            "1e3",
            "{a: b}",
            "[1, 2]",
            "",
            "- 1",
            "'",
            "? a",
        )
        return "\n".join([*(one for one in lines if one != line), f"{key}: {rng.choice(odd)}"]).encode()
    return json_of(changed(rng, value)).encode("utf-8", "surrogatepass")  # JSON is YAML, but for half surrogates


# ---- safetensors


def parted(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and bytes of tensors."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: Any, body: bytes) -> bytes:
    """A file of both."""
    text = json_of(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


def _names(header: dict[str, Any]) -> list[str]:
    return sorted(name for name in header if name != "__metadata__")


def tensors_structure(rng: Random, data: bytes) -> bytes:
    """One thing changed in a safetensors file: a type, a shape, a place, a name, metadata, or values."""
    header, body = parted(data)
    names = _names(header)
    if not names or rng.random() < 0.25:
        return joined(changed(rng, header), body)
    one = header[rng.choice(names)]
    first, last = one["data_offsets"]
    what = rng.randrange(9)
    if what == 0:
        one["dtype"] = rng.choice(("I32", "I64", "F64", "F16", "BF16", "BOOL", "F8_E4M3", "Q4", 3, "U32", "C64"))
    elif what == 1:
        one["shape"] = rng.choice((one["shape"][::-1], [*one["shape"], 1], [-1], [2**62, 4], [10**9], [], "x", [1.5]))
    elif what == 2:
        one["data_offsets"] = rng.choice(
            ([last, first], [0, last - first], [first + 4, last + 4], [first, 10**12], [-1, 3], [first], "x")
        )
    elif what == 3:
        header[rng.choice(("../x", "x", "", "a.b.c", "\ud800", "router.mlp.0.weight2"))] = header.pop(rng.choice(names))
    elif what == 4:
        _exchange(rng, header, names)
    elif what == 5:
        header["__metadata__"] = rng.choice(({"a": 1}, [], {"format": "np"}, {}, {"description": "{}"}, 3, {"x": "y"}))
    elif what == 6:
        return _without(header, body, rng.choice(names))
    elif what == 7:
        header[Twice(rng.choice(names))] = one
    else:
        bad = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\xff\xff\xff\xff", bytes(4)))
        place = first + 4 * rng.randrange(max(1, (last - first) // 4))
        body = body[:place] + bad + body[place + 4 :]
    return joined(header, body)


def _exchange(rng: Random, header: dict[str, Any], names: list[str]) -> None:
    """Two tensors of one shape change places, which no check of contents can see."""
    one = rng.choice(names)
    alike = [n for n in names if n != one and header[n]["shape"] == header[one]["shape"]] or names
    two = rng.choice(alike)
    header[one], header[two] = header[two], header[one]


def _without(header: dict[str, Any], body: bytes, name: str) -> bytes:
    """A sound file that lacks one tensor."""
    out, made = io.BytesIO(), {key: header[key] for key in header if key == "__metadata__"}
    for other in _names(header):
        if other != name:
            first, last = header[other]["data_offsets"]
            made[other] = {**header[other], "data_offsets": [out.tell(), out.tell() + last - first]}
            out.write(body[first:last])
    return joined(made, out.getvalue())


STRUCTURE: dict[str, Bytes] = {
    ".json": json_structure, ".yaml": yaml_structure, ".safetensors": tensors_structure,
}  # fmt: skip


# ---- what stands in the place of a file


def misplaced(rng: Random, path: Path) -> None:
    """A link out of the folder, to itself or nowhere, a folder, a pipe, or nothing, in the place of a file."""
    data = path.read_bytes()
    path.unlink()
    what = rng.randrange(6)
    if what == 0:
        elsewhere = path.parent.with_name(f"{path.parent.name}-elsewhere")
        elsewhere.mkdir(exist_ok=True)
        (elsewhere / path.name).unlink(missing_ok=True)
        (elsewhere / path.name).write_bytes(data)
        path.symlink_to(elsewhere / path.name)
    elif what == 1:
        path.symlink_to(path.name)
    elif what == 2:
        path.symlink_to("/nowhere/at/all")
    elif what == 3:
        path.mkdir()
    elif what == 4:
        os.mkfifo(path)


def damage(rng: Random, path: Path) -> str:
    """Damage one file, which is replaced rather than written into; what was done, for reports."""
    chosen = rng.random()
    if chosen < 0.05:
        misplaced(rng, path)
        return "something else in its place"
    structure = STRUCTURE.get(path.suffix)
    how = structure if structure is not None and chosen < 0.6 else rng.choice(BYTES)
    data = how(rng, path.read_bytes())
    path.unlink()
    path.write_bytes(data)
    return how.__name__
