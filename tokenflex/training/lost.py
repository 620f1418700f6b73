"""Processes that a run works with and that are gone, told in our own words: readers of data, and other ranks."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from tokenflex import errors
from tokenflex.errors import LostProcessError, TokenFlexError

READER = re.compile(r"DataLoader worker \(pid")
RANK = re.compile(r"gloo|nccl|connection (closed|reset)|timed out|timeout", re.IGNORECASE)
"""Words of torch's errors of communication; they have no class of their own with every backend."""


@contextmanager
def told_of_lost_processes() -> Iterator[None]:
    """Within, processes that are gone end in an error of this library, and errors of readers are theirs alone.

    Raises:
        LostProcessError: a process that reads data was killed, or another rank can't be reached.
    """
    try:
        yield
    except TokenFlexError as error:
        plain = of_reader(error)
        if plain is None:
            raise
        raise plain from error
    except RuntimeError as error:
        text = str(error)
        if READER.search(text):
            raise LostProcessError(
                f"a process that reads data is gone: {_line(text)}. Often memory ran out: use a smaller "
                "dataloader_num_workers (0 reads in the main process). What was finished is kept."
            ) from error
        if dist.is_available() and dist.is_initialized() and (isinstance(error, dist.DistError) or RANK.search(text)):
            raise LostProcessError(
                f"another process of this run is gone or can't be reached: {_line(text)}. See what it wrote last, and "
                "start all processes again; what was finished is kept."
            ) from error
        raise


def of_reader(error: TokenFlexError) -> TokenFlexError | None:
    """An error that a reading process raised, without that process's traceback, which torch puts into its message.

    None for an error of this process.
    """
    text = str(error)
    if not text.startswith("Caught ") or " in DataLoader worker process" not in text.partition("\n")[0]:
        return None
    found = [*re.finditer(r"^tokenflex\.errors\.(\w+): ", text, re.MULTILINE)]
    kind = getattr(errors, found[-1][1], None) if found else None
    if not (isinstance(kind, type) and issubclass(kind, TokenFlexError)):
        return None
    return kind(text[found[-1].end() :].strip())


def _line(text: str) -> str:
    return " ".join(text.split())[:300].rstrip(".")
