"""Conversations to batches, through the host's own processor, with labels on the answers only."""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import torch
from jaxtyping import Bool, Int
from jinja2.exceptions import TemplateError
from PIL import Image
from torch import Tensor
from transformers.utils.chat_template_utils import render_jinja_template

from tokenflex.chat import refused, special_tokens, written
from tokenflex.errors import DataError
from tokenflex.hosts.placeholders import IGNORE
from tokenflex.training.data import Sample, read_sample
from tokenflex.training.expanded import PLACEHOLDERS, Row, Span, overlap, pieces, processed, token_places

BLANK = Sample("blank row", (Image.new("RGB", (32, 32)),), ({"role": "user", "content": [{"type": "image"}]},))


class FlexCollator:
    """Turns `Sample`s, or rows in chat or LLaVA format, into the inputs of a `FlexModel`, padded on the right.

    Rows are decoded as `ChatDataset` does; it adds a choice of what to do with those that can't be used.

    The ids are those of the processor's ``apply_chat_template(..., tokenize=True)``.
    Every assistant turn is supervised, up to and including the end-of-sequence token the chat template writes
    after it; everything else is -100.

    Args:
        processor: the host's processor, with a chat template.
        max_length: longest row in tokens, placeholders included; text beyond it is cut off, placeholders never.
        always_image: give batches without images one more row, a blank image without an answer. Where parameters
            are sharded all processes must run the same modules, or they wait for each other for ever. The row counts as
            a sample without answers.
        image_folder: where image paths of rows start; they must stay below it, links followed. None takes any path.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        always_image: bool = False,
        image_folder: str | Path | None = None,
    ) -> None:
        if _template(processor) is None:
            raise DataError(
                f"{type(processor).__name__} has no chat template, so conversations can't be written down; "
                "set processor.chat_template."
            )
        self.processor, self.max_length, self.always_image = processor, max_length, always_image
        self.image_folder = Path(image_folder) if image_folder is not None else None

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """A batch of ``input_ids``, ``attention_mask``, ``labels`` and the processor's image tensors.

        Args:
            rows: `Sample`s, or mappings in chat or LLaVA format.

        Raises:
            DataError: names the row that can't be used, whose text can't be labelled or whose image doesn't fit
                ``max_length``.
        """
        samples = [
            row if isinstance(row, Sample) else read_sample(row, i, self.image_folder, " of the batch")
            for i, row in enumerate(rows)
        ]
        if self.always_image and not any(sample.images for sample in samples):
            samples = [*samples, BLANK]
        texts, spans = zip(*(self._conversation(sample) for sample in samples), strict=True)
        batch, read = self._processed(samples, texts)
        each = enumerate(zip(read, texts, spans, samples, strict=True))
        labels, images = zip(*(self._labels(batch, i, *row) for i, row in each), strict=True)
        batch["labels"] = torch.stack(labels)
        return self._cut(batch, torch.stack(images), samples)

    def _processed(self, samples: Sequence[Sample], texts: Sequence[str]) -> tuple[dict[str, Tensor], list[Row]]:
        """The processor's batch, and its rows as the tokenizer read them.

        Images go in row by row, as ``apply_chat_template`` gives them, or in one list where a processor wants that.
        """
        options: dict[str, Any] = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        options |= special_tokens(self.processor, texts)
        nested = [list(sample.images) for sample in samples]
        flat = [image for images in nested for image in images]
        errors: list[Exception] = []
        for images in (nested, flat):
            try:
                batch, rows = processed(self.processor, texts, images=images if flat else None, **options)
            except DataError:
                raise
            except Exception as error:  # a processor raises what it likes
                errors.append(error)
            else:
                return {key: value for key, value in batch.items() if isinstance(value, Tensor)}, rows
        raise self._refused(samples, texts, errors[0]) from errors[0]

    def _refused(self, samples: Sequence[Sample], texts: Sequence[str], error: Exception) -> DataError:
        """The error for a batch that the processor doesn't take, naming the row at fault where that can be told."""
        mark = getattr(self.processor, "image_token", None)
        if isinstance(mark, str) and any(mark in text for text in texts):
            for sample, text in zip(samples, texts, strict=True):
                if text.count(mark) != len(sample.images):
                    return DataError(
                        f"{sample.name}: its text has {text.count(mark)} times {mark!r}, which stands for an image, "
                        f"and the row has {len(sample.images)}. Mend or remove it."
                    )
        names = ", ".join(sample.name for sample in samples)
        return DataError(f"{type(self.processor).__name__} refuses {names} ({type(error).__name__}: {error}).")

    def _conversation(self, sample: Sample) -> tuple[str, list[tuple[int, int]]]:
        """The whole text, and where its answers are: half-open character spans."""
        messages = list(sample.messages)
        self._require_words(messages, sample.name)
        template = _template(self.processor)
        if re.search(r"{%-?\s*generation", template):
            return self._marked(messages, template, sample.name)
        text = written(self.processor, messages, sample.name)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            after = written(self.processor, messages[: i + 1], sample.name)
            before = self._before(messages[:i], message, after, sample.name)
            if not (text.startswith(after) and after.startswith(before)):
                raise DataError(
                    f"{sample.name}: the chat template writes earlier turns differently once later ones follow, "
                    "so answers can't be located. Use a template that only appends."
                )
            spans.append(self._until_eos(text, len(before), len(after)))
        return text, spans

    def _require_words(self, messages: Sequence[Mapping[str, Any]], name: str) -> None:
        """Refuse texts with the processor's own placeholder: it would take it for an image's."""
        owners = (self.processor, self.processor.tokenizer)
        held = [getattr(owner, mark, None) for owner in owners for mark in PLACEHOLDERS]
        for item in (item for message in messages for item in message["content"] if item["type"] == "text"):
            found = next((mark for mark in held if isinstance(mark, str) and mark in item["text"]), None)
            if found is not None:
                raise DataError(
                    f"{name}: the text {brief(item['text'])} has {found!r}, which stands for an image with this "
                    "processor. Write it otherwise, or remove the row."
                )

    def _marked(self, messages: list[dict[str, Any]], template: str, name: str) -> tuple[str, list[tuple[int, int]]]:
        """Text and spans by a template that marks the answers itself."""
        names = self.processor.tokenizer.special_tokens_map
        try:
            rendered: Any = render_jinja_template(
                [messages], chat_template=template, return_assistant_tokens_mask=True, **names
            )
        except TemplateError as error:
            raise refused(name, error) from error
        (text,), (marked,) = rendered
        return text, [self._until_eos(text, first, last) for first, last in marked]

    def _before(self, earlier: list[dict[str, Any]], answer: dict[str, Any], after: str, name: str) -> str:
        """What comes before an answer.

        Templates can't write a conversation without turns, so before a first turn comes what doesn't depend on it.

        Args:
            after: the text up to the answer's end.
        """
        if earlier:
            return written(self.processor, earlier, name, reply=True)
        said = next((item["text"].lstrip() for item in answer["content"] if item.get("text")), "")
        other = {**answer, "content": [{"type": "text", "text": "1" if said.startswith("0") else "0"}]}
        pairs = zip(after, written(self.processor, [other], name), strict=False)
        return after[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))]

    def _until_eos(self, text: str, first: int, last: int) -> tuple[int, int]:
        """An answer's span, cut after its last end-of-sequence token: what follows is the template's."""
        eos: str = self.processor.tokenizer.eos_token
        end = text.rfind(eos, first, last) if eos else -1
        return first, last if end < 0 else end + len(eos)

    def _labels(
        self, batch: Mapping[str, Tensor], number: int, row: Row, text: str, spans: Sequence[Span], sample: Sample
    ) -> tuple[Int[Tensor, " length"], Bool[Tensor, " length"]]:
        """Labels of one row, and which of its tokens stand for images."""
        ids = batch["input_ids"][number]
        try:
            found = pieces(self.processor, text, row.text, len(sample.images))
            targets = overlap(row, [moved for span in spans for moved in found.moved(span)])
            at = token_places(row, batch, number)
        except DataError as error:
            raise DataError(f"{sample.name}: {error}") from error
        drawn = overlap(row, found.images(row.text))
        labels, images = torch.full_like(ids, IGNORE), torch.zeros_like(ids, dtype=torch.bool)
        labels[at] = torch.where(targets & ~drawn, ids[at], IGNORE)
        images[at] = drawn
        return labels, images

    def _cut(
        self, batch: dict[str, Tensor], images: Bool[Tensor, "rows length"], samples: Sequence[Sample]
    ) -> dict[str, Tensor]:
        ids = batch["input_ids"]
        if self.max_length is None or ids.shape[1] <= self.max_length:
            return batch
        lost = images[:, self.max_length :].any(-1)
        if bool(lost.any()):
            bad = samples[int(lost.nonzero()[0])]
            raise DataError(
                f"{bad.name}: an image's placeholders reach beyond max_length={self.max_length}; raise it to "
                f"{ids.shape[1]} or use fewer tiles."
            )
        keys = [key for key, value in batch.items() if value.shape[:2] == ids.shape and not value.is_floating_point()]
        return batch | {key: batch[key][:, : self.max_length] for key in keys}


def _template(processor: Any) -> Any:
    """The chat template that transformers takes where several are named; None without."""
    template = getattr(processor, "chat_template", None)
    return template.get("default") if isinstance(template, dict) else template
