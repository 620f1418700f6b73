"""What a set of stored feedback depends on, as digests that can be compared."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tokenflex import checkpoint
from tokenflex.errors import ConfigError, DataError
from tokenflex.images import decode
from tokenflex.model import FlexModel
from tokenflex.ops.digest import of_tensors
from tokenflex.training.data import ChatDataset

Fingerprint = dict[str, Any]


def feedback_fingerprint(flex: FlexModel, dataset: Any, collator: Any, precision: str = "no") -> Fingerprint:
    """JSON-ready; equal exactly when host weights, adapter, scaler, processor, data set and precision are.

    Images that a row names by their path count by that name, not by their pixels; rows that can't be read count as
    none.

    Args:
        dataset: a `ChatDataset`, or anything with a length and comparable rows.
        collator: with ``processor`` and ``max_length``, as `FlexCollator` has them.
        precision: of autocast: ``no``, ``bf16`` or ``fp16``.

    Raises:
        ConfigError: the data set is a stream.
    """
    if not hasattr(dataset, "__len__"):
        raise ConfigError(
            f"feedback is stored by the rows' places, and a {type(dataset).__name__} has none. Give a ChatDataset."
        )
    spec = checkpoint.describe(flex.compressor, flex.adapter)
    scaler = {key: value for key, value in spec["parts"]["scaler"].items() if key != "version"}
    processor = getattr(collator, "processor", None)
    found = {
        "host": {**spec["host"], "dtype": str(flex.host.dtype), "weights": of_tensors(flex.host.state_dict())},
        "scaler": {**scaler, "weights": of_tensors(flex.compressor.scaler.state_dict())},
        "processor": of_processor(processor) if processor is not None else type(collator).__name__,
        "max_length": getattr(collator, "max_length", None),
        "data": {"rows": len(dataset), "content": of_data(dataset)},
        "precision": precision,
    }
    return json.loads(json.dumps(found))


def of_processor(processor: Any) -> str:
    """Digest of the files it saves itself as; how its tokenizer padded and cut last isn't in it."""
    digest = hashlib.blake2b(digest_size=16)
    with tempfile.TemporaryDirectory() as folder, _unset(processor):
        processor.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _unset(processor: Any) -> Iterator[None]:
    """A tokenizer without the padding and truncation of its last call, which it would save."""
    backend = getattr(getattr(processor, "tokenizer", processor), "backend_tokenizer", None)
    if backend is None:
        yield
        return
    padding, truncation = backend.padding, backend.truncation
    backend.no_padding()
    backend.no_truncation()
    try:
        yield
    finally:
        if padding is not None:
            backend.enable_padding(**padding)
        if truncation is not None:
            backend.enable_truncation(**truncation)


def of_data(dataset: Any) -> str:
    """Digest of the rows, in order."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(dataset, ChatDataset):
        digest.update(f"{dataset.image_folder} {dataset.on_bad_sample}".encode())
    for i in range(len(dataset)):
        row = _row(dataset, i) if isinstance(dataset, ChatDataset) else dataset[i]
        digest.update(json.dumps(row, default=_plain, sort_keys=True).encode())
    return digest.hexdigest()


def _row(dataset: ChatDataset, place: int) -> Any:
    try:
        return dataset.row(place)
    except DataError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    if isinstance(value, Image.Image):
        return _pixels(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


def _pixels(image: Image.Image) -> Any:
    """What is seen of an image: neither its mode nor its EXIF by themselves."""
    try:
        seen = decode(image)
    except DataError as error:
        return str(error)
    return [seen.mode, *seen.size, _plain(seen.tobytes())]
