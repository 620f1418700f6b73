"""vLLM's models, taking an image's embeddings however many there are.

vLLM's own check the shape of a batch's embeddings, and have no shape for images of different lengths.
"""

from typing import Any

from torch import Tensor
from vllm.model_executor.models import interns1, llava, llava_next  # pyright: ignore[reportMissingImports]

EMBEDDINGS = "image_embeds"


class Llava(llava.LlavaForConditionalGeneration):
    """vLLM's LLaVA, for images of different lengths."""

    def embed_multimodal(self, **inputs: object) -> Any:
        """Embeddings as they came, one tensor ``(tokens, dim)`` per image; images as vLLM's own model embeds them."""
        given = _per_image(inputs)
        return super().embed_multimodal(**inputs) if given is None else given


class LlavaNext(llava_next.LlavaNextForConditionalGeneration):
    """vLLM's LLaVA-NeXT, for images of different lengths."""

    def embed_multimodal(self, **inputs: object) -> Any:
        """As `Llava.embed_multimodal`."""
        given = _per_image(inputs)
        return super().embed_multimodal(**inputs) if given is None else given


class InternVL(interns1.InternS1ForConditionalGeneration):
    """vLLM's InternVL as transformers saves it, for images of different lengths."""

    def embed_multimodal(self, **inputs: object) -> Any:
        """As `Llava.embed_multimodal`."""
        given = _per_image(inputs)
        return super().embed_multimodal(**inputs) if given is None else given


def _per_image(inputs: dict[str, Any]) -> list[Tensor] | None:
    """Every image's embeddings, ``(tokens, dim)``; None where the batch has none."""
    given = inputs.get(EMBEDDINGS)
    if given is None:
        return None
    return [image.flatten(0, -2) for image in given]
