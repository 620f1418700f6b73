"""What a tiny random host of one architecture is made of, and the batches it is tested with.

All of them share one vocabulary: the ids below are special, words follow from ``WORD`` on.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PAD, BOS, EOS, IMAGE, VIDEO, START, END, BREAK, ROW, COLUMN, GLOBAL = 0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11
WORD, VOCABULARY = 16, 64
AN_IMAGE = "image"
"""Stands for the batch's next image in a row of words."""

A_VIDEO = "video"
"""Stands for the batch's next video in a row of words."""

Row = Sequence[int | str]


@dataclass(frozen=True)
class Images:
    """What a processor would make of a batch's images.

    Attributes:
        inputs: the encoder's arguments for the whole batch, e.g. ``pixel_values`` and ``image_grid_thw``.
        runs: per image the token ids that stand for it in the text: placeholders and what the processor writes
            around and between them.
    """

    inputs: dict[str, Tensor]
    runs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TinyHost:
    """One architecture at toy size.

    Attributes:
        model_type: of its config.
        build: makes the model from a config, with seeded large random weights, in evaluation mode.
        images: given the model's config and, per row of the batch, the numbers of its images. Image ``n`` has
            the same pixels in every batch; where the architecture allows it, sizes differ with ``n``.
        token_types: input that is 1 at placeholders of images, 2 at those of videos and 0 elsewhere, if the host
            takes one.
        videos: the same as ``images`` for the batch's videos, if the host takes any.
        more_types: makes further inputs from the token ids, or other ones than ``token_types`` says.
        exceptions: law -> why the architecture itself doesn't keep it.
    """

    model_type: str
    build: Callable[[], Any]
    images: Callable[[Any, Sequence[Sequence[int]]], Images]
    token_types: str | None = None
    videos: Callable[[Any, Sequence[Sequence[int]]], Images] | None = None
    more_types: Callable[[Tensor], dict[str, Tensor]] | None = None
    exceptions: Mapping[str, str] = field(default_factory=dict)

    def batch(self, config: Any, rows: Sequence[Row], *, side: str = "left", first: int = 0) -> dict[str, Tensor]:
        """Inputs for the model, padded.

        Args:
            rows: word numbers, ``AN_IMAGE`` for the next image and ``A_VIDEO`` for the next video.
            side: where shorter rows are padded.
            first: number of the batch's first image and of its first video.
        """
        seen = self._seen(self.images, config, _numbers(rows, AN_IMAGE, first))
        videos = self._seen(self.videos, config, _numbers(rows, A_VIDEO, first))
        runs = {AN_IMAGE: iter(seen.runs), A_VIDEO: iter(videos.runs)}
        texts = [[BOS, *_text(row, runs)] for row in rows]
        length = max(map(len, texts))
        ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
        for i, text in enumerate(texts):
            where = slice(length - len(text), length) if side == "left" else slice(0, len(text))
            ids[i, where], mask[i, where] = torch.tensor(text), 1
        types = {self.token_types: (ids == IMAGE) + 2 * (ids == VIDEO)} if self.token_types else {}
        types |= self.more_types(ids) if self.more_types else {}
        return {"input_ids": ids, "attention_mask": mask, **types, **seen.inputs, **videos.inputs}

    @staticmethod
    def _seen(make: Any, config: Any, numbers: list[list[int]]) -> Images:
        return make(config, numbers) if any(numbers) else Images({}, ())


def _numbers(rows: Sequence[Row], word: str, first: int) -> list[list[int]]:
    count = itertools.count(first)
    return [[next(count) for item in row if item == word] for row in rows]


def _text(row: Row, runs: Any) -> list[int]:
    ids: list[int] = []
    for item in row:
        ids += next(runs[item]) if isinstance(item, str) else [WORD + item]
    return ids


def pixels(number: int, *shape: int) -> Tensor:
    """The pixels of image ``number``: noise, the same in every batch."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(number))


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    """Build under a seed, leaving the global one alone; evaluation mode, nothing generated but words."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = make()
    torch.random.set_rng_state(state)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, EOS
    return model.eval()
