"""Rows that come one after the other: streams of ``datasets``, generators, anything that can be iterated again."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from tokenflex.errors import DataError
from tokenflex.training.data import Sample, pass_over, read_sample, require_known
from tokenflex.training.row_files import require_one_split


class ChatStream(IterableDataset[Sample]):
    """Decodes rows into `Sample`s while they come, for data that has no length and no places: `ChatDataset`'s twin.

    With data loader workers each takes its share: of a ``datasets.IterableDataset`` the shards that ``datasets`` gives
    it, of anything else every n-th row. Several processes are given their rows by the trainer.

    Args:
        rows: mappings in chat or LLaVA format; iterated anew in every epoch.
        image_folder: where image paths start; they must stay below it, links followed. None takes any path.
        on_bad_sample: ``raise`` a `DataError` naming the row, or ``skip`` it. Rows are counted from the stream's
            beginning, by each worker for itself; skipped ones are logged once and listed in ``skipped``.
    """

    def __init__(
        self, rows: Iterable[Any], image_folder: str | Path | None = None, on_bad_sample: str = "raise"
    ) -> None:
        require_known(on_bad_sample)
        if isinstance(rows, Mapping):
            require_one_split(rows)
        if isinstance(rows, Iterator):
            raise DataError(
                f"a {type(rows).__name__} can be read once, and every epoch reads from the beginning; give something "
                "that can be iterated again, such as datasets.IterableDataset.from_generator(...)."
            )
        self.rows, self.on_bad_sample = rows, on_bad_sample
        self._stored = _undecoded(rows)
        self.image_folder = Path(image_folder) if image_folder is not None else None
        self.skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[Sample]:
        """The rows that can be used.

        Raises:
            DataError: a row can't be used and ``on_bad_sample`` is ``raise``; or none of the rows can be used.
        """
        used = 0
        for place, row in self._own():
            try:
                yield read_sample(row, place, self.image_folder)
                used += 1
            except DataError as error:
                pass_over(self, place, error)
        if not used and self.skipped:
            raise DataError(f"none of the stream's rows can be used; the first: {next(iter(self.skipped.values()))}")

    def set_epoch(self, epoch: int) -> None:
        """Tell the rows the epoch, where they shuffle by it; trainers call it."""
        for rows in (self.rows, self._stored):
            if hasattr(rows, "set_epoch"):
                rows.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]

    def _own(self) -> Iterator[tuple[int, Any]]:
        """The rows of this worker, with their places."""
        worker = get_worker_info()
        every = 1 if worker is None or isinstance(self._stored, IterableDataset) else worker.num_workers
        first = 0 if worker is None or every == 1 else worker.id
        rows, place = iter(self._stored), 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except DataError:
                raise
            except Exception as error:  # rows may be of any class, and read from anywhere
                raise DataError(
                    f"row {place} can't be read ({type(error).__name__}: {error}). Mend the data."
                ) from error
            if place % every == first:
                yield place, row
            place += 1


def _undecoded(rows: Any) -> Any:
    """The same rows; those of a ``datasets.IterableDataset`` with images as stored, which `read_sample` decodes."""
    if getattr(rows, "features", None) is None or not hasattr(rows, "decode") or isinstance(rows, Mapping):
        return rows
    return rows.decode(False)
