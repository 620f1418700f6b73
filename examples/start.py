"""What the examples begin with: a model, its processor, and an image with a question. Without ``--model`` a tiny one.

The tiny model has random weights, so that every example runs anywhere in seconds; what it answers means nothing.
"""

import argparse
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tokenflex import images
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor


def arguments(description: str | None, **more: dict[str, Any]) -> argparse.Namespace:
    """``--model``, ``--image``, ``--question``, and what an example adds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id, for instance llava-hf/llava-v1.6-vicuna-7b-hf")
    parser.add_argument("--image", help="an image file; without it, noise")
    parser.add_argument("--question", default="w1 w2 w3", help="what is asked about the image")
    for name, settings in more.items():
        parser.add_argument(f"--{name}", **settings)
    return parser.parse_args()


def loaded(asked: argparse.Namespace) -> tuple[Any, Any]:
    """Host and processor."""
    torch.manual_seed(0)
    if asked.model is None:
        return tiny_llava_next(), tiny_llava_next_processor()
    host: Any = AutoModelForImageTextToText.from_pretrained(asked.model, dtype="auto", device_map="auto")
    return host.eval(), AutoProcessor.from_pretrained(asked.model)


def image(asked: argparse.Namespace, seed: int = 0) -> Image.Image:
    """The image that was asked for, or noise."""
    if asked.image is not None:
        return images.decode(asked.image)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8))


def batch(host: Any, processor: Any, image: Image.Image, question: str) -> dict[str, Any]:
    """One question about one image, as the processor writes it, on the host's device."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    made = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    return dict(made.to(host.device))


def answer(processor: Any, inputs: dict[str, Any], ids: torch.Tensor) -> str:
    """The new tokens as text."""
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
