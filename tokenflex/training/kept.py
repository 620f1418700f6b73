"""What a router sees of a store's samples, as one safetensors file per shard: ``part-*.safetensors``.

The file's metadata has a ``layout``: for every sample's id its images, each as rows and columns of its grid and whether
it is a video (1) or not (0). Image ``n`` of sample ``i`` is the tensor ``i/n``, its attention and keys, where a scaler
reads those, ``i/n/attention`` and ``i/n/keys``; ``i/words`` and ``i/mask`` are the instruction. The shard's Parquet
file keeps a digest of every sample, which is compared when a sample is first read.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenflex.contracts import READ_OFF, Grid, Instruction, VisualTokens
from tokenflex.errors import DataError
from tokenflex.ops.digest import of_tensors
from tokenflex.reading import Entry, json_text, own_file, tensor_names
from tokenflex.run_folder.sealed import AGAIN

LAYOUT, INPUTS = "layout", "inputs"
"""Keys of the metadata: of the safetensors file, and of the Parquet file that keeps the digests."""
DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""What safetensors calls the types in which visual tokens and words may be kept."""
Grids = list[list[int]]
"""A sample's images in the layout."""


class KeptSample(Protocol):
    """What is kept of a sample is read from these."""

    @property
    def id(self) -> int:
        """The sample's place in the data set."""
        ...

    @property
    def images(self) -> tuple[VisualTokens, ...]:
        """Its images, as a router sees them."""
        ...

    @property
    def instruction(self) -> Instruction | None:
        """The prompt tokens, as a router sees them; None where they aren't kept."""
        ...


def shard_tensors(samples: Sequence[KeptSample]) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Tensors and metadata of a shard's safetensors file, and what its Parquet file is told.

    Raises:
        DataError: a value isn't finite, so it couldn't be learnt from.
    """
    tensors: dict[str, Tensor] = {}
    layout: dict[str, Grids] = {}
    digests: dict[str, str] = {}
    for sample in samples:
        assert sample.instruction is not None
        name = str(sample.id)
        layout[name] = [[im.grid.rows, im.grid.cols, int(im.video)] for im in sample.images]
        own = {f"{name}/words": sample.instruction.embeddings.contiguous()}
        own[f"{name}/mask"] = sample.instruction.mask.clone()  # rows of one batch may share theirs
        for n, image in enumerate(sample.images):
            own[f"{name}/{n}"] = image.features.contiguous()
            read = {key: getattr(image, key) for key in READ_OFF}
            own |= {f"{name}/{n}/{key}": t.contiguous() for key, t in read.items() if t is not None}
        for key, tensor in own.items():
            if not bool(tensor.isfinite().all()):
                raise DataError(
                    f"what a router sees of row {name} has values that aren't finite ({key}, {tensor.dtype}). "
                    "Keep it as bfloat16 or float32, or score with a host in such a type."
                )
        digests[name] = _digest(own, layout[name])
        tensors |= own
    return tensors, {LAYOUT: json.dumps(layout)}, {INPUTS: json.dumps(digests)}


def _digest(tensors: Mapping[str, Tensor], grids: Grids) -> str:
    return hashlib.blake2b(f"{grids} {of_tensors(tensors)}".encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Expected:
    """What a shard's tensors must be.

    Attributes:
        dtype: of visual tokens and words, as torch names it.
        dim: of the words; of visual tokens, too, where they are kept after the projector.
        projected: whether they are.
    """

    dtype: str
    dim: int
    projected: bool


class KeptShard:
    """A shard's safetensors file, open.

    Args:
        folder, name: of the file.
        ids: the shard's samples.
        digests: the text that the Parquet file kept; None in shards of older versions.

    Raises:
        DataError: it is missing or damaged, or holds something else than ``expected`` says.
    """

    def __init__(self, folder: Path, name: str, ids: Collection[int], digests: str | None, expected: Expected) -> None:
        self.path = own_file(folder, name, DataError)
        metadata, self.entries = tensor_names(self.path, DataError)
        self.layout: dict[str, Grids] = json_text(metadata.get(LAYOUT, "null"), f"{self.path}: layout", DataError)
        self.digests: dict[str, str] | None = None
        if digests is not None:
            self.digests = json_text(digests, f"{self.path}: digests", DataError)
        wanted = {str(place) for place in ids}
        named = {"layout": self.layout} | ({} if digests is None else {"digests of the Parquet file": self.digests})
        for what, known in named.items():
            if not isinstance(known, dict) or set(known) != wanted:
                raise DataError(f"{self.path}: the {what} doesn't name the samples of the Parquet file. {AGAIN}")
        rest = set(self.entries)
        for place, grids in self.layout.items():
            rest -= self._require(place, grids, expected)
        if rest:
            raise DataError(f"{self.path} has tensors that its layout doesn't name: {sorted(rest)[:5]!r:.300}. {AGAIN}")
        self._checked: set[int] = set()
        try:
            self._held: Any = safe_open(self.path, "pt")
        except (OSError, SafetensorError) as error:
            raise DataError(f"{self.path} can't be read as safetensors: {error}. Make it again.") from error

    def _require(self, place: str, grids: Any, expected: Expected) -> set[str]:
        """One sample's tensors are of the right type and shape; gives their names."""
        kind, names = DTYPES[expected.dtype], set[str]()

        def need(name: str, dtypes: Sequence[str], shape: tuple[int | None, ...], missing: bool = False) -> None:
            entry = self.entries.get(name)
            if entry is None and missing:
                return
            if entry is None or not _fits(entry, dtypes, shape):
                found = "isn't there" if entry is None else f"is {entry.dtype} of shape {entry.shape}"
                wanted = f"{' or '.join(dtypes)} of shape {tuple('any' if n is None else n for n in shape)}"
                raise DataError(f"{self.path}: {name} {found}; expected {wanted}. {AGAIN}")
            names.add(name)

        if not _are_grids(grids):
            raise DataError(f"{self.path}: the layout of {place!r} is {grids!r:.100}, expected grids. {AGAIN}")
        need(f"{place}/words", [kind], (None, expected.dim))
        need(f"{place}/mask", ["BOOL"], self.entries[f"{place}/words"].shape[:1])
        for n, (rows, cols, _) in enumerate(grids):
            need(f"{place}/{n}", [kind], (None, rows * cols, expected.dim if expected.projected else None))
            views = self.entries[f"{place}/{n}"].shape[0]
            need(f"{place}/{n}/attention", list(DTYPES.values()), (views, rows * cols), missing=True)
            need(f"{place}/{n}/keys", [kind], (views, rows * cols, None), missing=True)
        return names

    def sample(self, place: int) -> tuple[tuple[VisualTokens, ...], Instruction]:
        """What is kept of a sample.

        Raises:
            DataError: it isn't what was written, or isn't finite.
        """
        grids, prefix = self.layout[str(place)], f"{place}/"
        each = [f"{prefix}words", f"{prefix}mask"]
        for n in range(len(grids)):
            each += [f"{prefix}{n}", *(f"{prefix}{n}/{key}" for key in READ_OFF)]
        try:
            own = {name: self._held.get_tensor(name) for name in each if name in self.entries}
        except (OSError, SafetensorError) as error:
            raise DataError(f"{self.path}: row {place} can't be read: {error}. Make the shard again.") from error
        if place not in self._checked:
            self._require_written(place, own, grids)

        def one(n: int, rows: int, cols: int, video: int) -> VisualTokens:
            read = {key: t for key in READ_OFF if (t := own.get(f"{prefix}{n}/{key}")) is not None}
            return VisualTokens(own[f"{prefix}{n}"], Grid(rows, cols), row=0, video=bool(video), **read)

        images = tuple(one(n, *grid) for n, grid in enumerate(grids))
        return images, Instruction(own[f"{prefix}words"], own[f"{prefix}mask"])

    def _require_written(self, place: int, own: Mapping[str, Tensor], grids: Grids) -> None:
        if self.digests is not None and self.digests[str(place)] != _digest(own, grids):
            raise DataError(f"{self.path}: the digest of row {place} isn't that of its tensors. {AGAIN}")
        odd = [name for name, tensor in own.items() if not bool(torch.isfinite(tensor).all())]
        if odd:
            raise DataError(f"{self.path}: {', '.join(odd)} have values that aren't finite. {AGAIN}")
        self._checked.add(place)


def _fits(entry: Entry, dtypes: Sequence[str], shape: tuple[int | None, ...]) -> bool:
    sides = zip(entry.shape, shape, strict=False)
    return entry.dtype in dtypes and len(entry.shape) == len(shape) and all(b is None or a == b for a, b in sides)


def _are_grids(grids: Any) -> bool:
    def grid(one: Any) -> bool:
        return isinstance(one, list) and len(one) == 3 and all(type(n) is int for n in one)

    return isinstance(grids, list) and all(grid(one) and min(one[:2]) > 0 and one[2] in (0, 1) for one in grids)
