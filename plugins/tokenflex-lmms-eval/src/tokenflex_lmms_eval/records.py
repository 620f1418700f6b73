"""The record of a run: a JSON Lines file with an answer per line, to be joined with lmms-eval's own samples."""

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenflex.errors import ConfigError
from tokenflex_lmms_eval.answering import Answer


@dataclass(frozen=True)
class Record:
    """One answer; ``task`` and ``doc_id`` are lmms-eval's.

    Attributes:
        repeat: counts the answers to the same document, from 0.
        levels, visual_tokens, finest_tokens, input_tokens: see `Answer`.
        output_tokens: generated, the end-of-sequence token included.
        stopped: ``eos``, ``until`` (a text that the task named) or ``length`` (``max_new_tokens``: cut off).
    """

    task: str
    doc_id: int | str
    repeat: int
    answer: str
    levels: tuple[int, ...]
    visual_tokens: int
    finest_tokens: int
    input_tokens: int
    output_tokens: int
    stopped: str


def record(task: str, doc_id: int | str, repeat: int, answer: Answer) -> Record:
    """An answer with its place."""
    return Record(
        task=task,
        doc_id=doc_id,
        repeat=repeat,
        answer=answer.ending.text,
        levels=answer.levels,
        visual_tokens=answer.visual_tokens,
        finest_tokens=answer.finest_tokens,
        input_tokens=answer.input_tokens,
        output_tokens=answer.ending.tokens,
        stopped=answer.ending.stopped,
    )


def place(path: Path, rank: int, processes: int) -> Path:
    """Where one process writes: ``run.jsonl``, or of several ``run.0-of-2.jsonl``.

    Raises:
        ConfigError: the file exists.
    """
    own = path if processes == 1 else path.with_name(f"{path.stem}.{rank}-of-{processes}{path.suffix}")
    if own.exists():
        raise ConfigError(f"log={own} exists already; name another file, or remove it if it isn't needed.")
    return own


def write(path: Path, records: Iterable[Record]) -> None:
    """All records at once: the file is there in full or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in records)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
