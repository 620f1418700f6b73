"""Batches of a feedback pass, cut once over the whole data set.

The data set is taken in windows of consecutive samples. Each window is sorted by length and cut into batches, which are
numbered through the data set. Nothing but the samples and the size of a batch decides: not what is scored already, and
not how many processes there are. So a sample is always computed in the same company, and a pass that was stopped and
taken up gives the same numbers, to the last bit, as one that never stopped.
"""

from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tokenflex.training.data import ChatDataset

WINDOW = 16
"""Batches' worth of samples that are sorted by length before they are cut into batches."""
Cut = tuple[int, list[int], dict[str, Tensor]]
"""How many samples a batch has, their places, and the collated batch; no places for a batch that is scored already."""


class Batches:
    """The batches of one process.

    Args:
        dataset: samples by place; a `ChatDataset` tells their lengths without decoding images.
        collator: makes a batch of samples.
        size: samples per batch.
        process: rank of this process and how many there are; it takes every so-manieth batch.
    """

    def __init__(self, dataset: Any, collator: Any, size: int, process: tuple[int, int]) -> None:
        self.dataset, self.collator, self.size, self.process = dataset, collator, size, process

    @property
    def samples(self) -> int:
        """How many samples the batches of this process have."""
        rank, processes = self.process
        count = -(-len(self.dataset) // self.size)
        return sum(self._length(number) for number in range(rank, count, processes))

    def left(self, missing: Collection[int], workers: int) -> Iterator[Cut]:
        """All batches of this process in order; those without a missing sample are counted, and not read.

        Args:
            missing: places of samples that aren't scored.
            workers: processes that read and prepare samples.
        """
        for window in DataLoader(_Windows(self, frozenset(missing)), batch_size=None, num_workers=workers):
            yield from window

    def window(self, index: int, missing: frozenset[int]) -> list[Cut]:
        """The batches of this process in one window."""
        rank, processes = self.process
        first, width = index * WINDOW, self.size * WINDOW
        places = range(index * width, min((index + 1) * width, len(self.dataset)))
        numbers = range(first, first + -(-len(places) // self.size))
        own = [number for number in numbers if number % processes == rank]
        if not own or missing.isdisjoint(places):
            return [(self._length(number), [], {}) for number in own]
        order = sorted(places, key=lambda place: extent(self.dataset, place), reverse=True)
        cut = [order[(number - first) * self.size :][: self.size] for number in own]
        return [self._made(batch, missing) for batch in cut]

    def _length(self, number: int) -> int:
        return min(self.size, len(self.dataset) - number * self.size)

    def _made(self, places: list[int], missing: frozenset[int]) -> Cut:
        """A batch with a missing sample is made as a whole: the others in it are its padding's measure."""
        if missing.isdisjoint(places):
            return len(places), [], {}
        return len(places), places, self.collator([self.dataset[place] for place in places])


class _Windows(Dataset[list[Cut]]):
    def __init__(self, batches: Batches, missing: frozenset[int]) -> None:
        self.batches, self.missing = batches, missing

    def __len__(self) -> int:
        return -(-len(self.batches.dataset) // (self.batches.size * WINDOW))

    def __getitem__(self, index: int) -> list[Cut]:
        return self.batches.window(index, self.missing)


def extent(dataset: Any, place: int) -> tuple[int, int]:
    """Grows with a sample's length in tokens: pixels of its images, then characters of its text."""
    if isinstance(dataset, ChatDataset):
        return dataset.extent(place)
    sample = dataset[place]
    pixels = sum(image.width * image.height for image in getattr(sample, "images", ()))
    texts = (item.get("text", "") for message in getattr(sample, "messages", ()) for item in message["content"])
    return pixels, sum(map(len, texts))
