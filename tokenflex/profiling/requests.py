"""Batches to measure on: images and questions, written down by the host's own processor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokenflex.chat import special_tokens, written
from tokenflex.errors import ConfigError

QUESTIONS = ("What does this image show?", "which photo")
"""Asked when nothing is said: the first whose words the tokenizer knows, so that a router trained on few words (that of
the quickstart) sees words at all."""


@dataclass(frozen=True)
class Requests:
    """What is asked: row ``i`` of a batch has image and prompt ``i``, from the start again when they run out."""

    images: Sequence[Image.Image]
    prompts: Sequence[str]

    def batch(self, processor: Any, rows: int, *, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """So many requests as the host wants them, padded on the left.

        Args:
            processor: the host's.
            dtype: of the host, for what isn't an integer.

        Raises:
            ConfigError: the processor has neither a chat template nor a token for images.
        """
        texts = [_written(processor, self.prompts[i % len(self.prompts)]) for i in range(rows)]
        images = [[self.images[i % len(self.images)]] for i in range(rows)]
        options: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        made = processor(text=texts, images=images, **options, **special_tokens(processor, texts))
        tensors = {key: value.to(device) for key, value in made.items() if isinstance(value, Tensor)}
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}


def question(processor: Any) -> str:
    """One of `QUESTIONS` that the tokenizer can write without its token for unknown words; the first if none."""
    tokenizer = processor.tokenizer
    known = (q for q in QUESTIONS if tokenizer.unk_token_id not in tokenizer(q)["input_ids"])
    return next(known, QUESTIONS[0])


def photograph() -> Image.Image:
    """The image when none is given: a cat, from scikit-image, 451 x 300 pixels.

    Raises:
        ConfigError: scikit-image isn't installed.
    """
    try:
        from skimage import data
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the photograph that is measured by default is inside scikit-image, which isn't installed: give --image "
            "PATH, or pip install 'tokenflex[quickstart]'."
        ) from error
    return Image.fromarray(data.chelsea())


def _written(processor: Any, prompt: str) -> str:
    """A prompt with one image, in the processor's conversation format where it has one."""
    if getattr(processor, "chat_template", None) is not None:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        return written(processor, messages, f"the prompt {prompt!r}", reply=True)
    token = getattr(processor, "image_token", None)
    if token is None:
        raise ConfigError(
            f"{type(processor).__name__} has neither a chat template nor an image token, so a prompt can't be written "
            "down. Set processor.chat_template and save the processor again."
        )
    return f"{token} {prompt}"
