"""Models and data to measure on: LLaVA-NeXT of transformers' own classes, with random weights."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)
from transformers.models.llava_next import LlavaNextImageProcessor

import tokenflex
from tokenflex.model import FlexModel
from tokenflex.ops.pooling import PYRAMID
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.testing.tiny_hosts import TEMPLATE, tiny_tokenizer
from tokenflex.training import ChatDataset, FlexCollator

WORDS = tuple(f"x{i}" for i in range(2000))
FRAME = 5
"""Text tokens of a sample that are neither question nor answer: two roles, two colons, the end."""


@dataclass(frozen=True)
class Size:
    """A model, what it is fed, and how long it is measured.

    Attributes:
        vision, text: of the `CLIPVisionConfig` and the `LlamaConfig`.
        pinpoints: (height, width) of the canvases.
        image: (height, width) of every image, in pixels.
        words: text tokens of a sample.
        answers: how many of them are supervised.
        batch: samples of a step.
        device, dtype: where the host lives, and as what.
        checkpointing: whether layers are computed again in the backward pass.
        pairs, extra_pairs: repetitions of what is compared with the baseline, and of what only fills the table.
        routers: widths at which the router alone is measured.
        tiles, patches, router_words: what it looks at there; a tile has ``patches`` x ``patches`` tokens.
        samples: of the data set on which stored feedback is measured.
        epochs: over it.
    """

    vision: dict[str, int]
    text: dict[str, int]
    pinpoints: list[list[int]]
    image: tuple[int, int]
    words: int
    answers: int
    batch: int = 1
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    pairs: int = 5
    extra_pairs: int = 2
    routers: tuple[int, ...] = (1024, 2048)
    tiles: int = 5
    patches: int = 24
    router_words: int = 64
    samples: int = 4
    epochs: int = 10


TINY = Size(
    vision={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 56, "patch_size": 14, "projection_dim": 32},
    text={"vocab_size": 2100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
          "num_attention_heads": 8, "num_key_value_heads": 8},
    pinpoints=[[56, 112], [112, 56], [112, 112]], image=(56, 112), words=24, answers=8,
    routers=(64, 128), tiles=3, patches=8, router_words=40, samples=2, epochs=2,
)  # fmt: skip
SMALL = Size(
    vision={"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 7, "num_attention_heads": 4,
            "image_size": 168, "patch_size": 14, "projection_dim": 256},
    text={"vocab_size": 32000, "hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 10,
          "num_attention_heads": 10, "num_key_value_heads": 10},
    pinpoints=[[168, 336], [336, 168], [336, 336]], image=(168, 336), words=64, answers=24, batch=2,
)  # fmt: skip
VICUNA_7B = Size(
    vision={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 336, "patch_size": 14, "projection_dim": 768},
    text={"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
          "num_attention_heads": 32, "num_key_value_heads": 32},
    pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]], image=(672, 672), words=200,
    answers=100, device="cuda", dtype=torch.bfloat16, checkpointing=True, routers=(1024, 2048, 3072, 4096),
)  # fmt: skip
SIZES = {"tiny": TINY, "small": SMALL, "7b": VICUNA_7B}


def on(size: Size, device: str) -> Size:
    """The same size elsewhere."""
    return replace(size, device=device)


def host(size: Size, seed: int) -> LlavaNextForConditionalGeneration:
    """The stock model, with random weights."""
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**size.vision),
        text_config=LlamaConfig(
            **size.text, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2
        ),
        image_token_id=4,
        image_grid_pinpoints=size.pinpoints,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(size.dtype)
    try:
        with torch.device(size.device):
            return LlavaNextForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)


def flex_model(size: Size, seed: int, levels: int = len(PYRAMID)) -> FlexModel:
    """The host with fresh parts, ready to be trained.

    Args:
        levels: how many granularities, counted from the finest.
    """
    stock = host(size, seed)
    flex = tokenflex.wrap(stock, scaler=AveragePoolScaler.Config(windows=PYRAMID[-levels:])).to(size.device)
    if size.checkpointing:
        flex.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return flex.train()


def collator(size: Size) -> FlexCollator:
    """The stock processor behind the library's collator."""
    side, patch = size.vision["image_size"], size.vision["patch_size"]
    images = LlavaNextImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=size.pinpoints,
    )
    processor = LlavaNextProcessor(
        images,
        tiny_tokenizer(WORDS),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return FlexCollator(processor)


def dataset(size: Size, seed: int, samples: int) -> ChatDataset:
    """Noise for images, random words for questions and answers."""
    words, pixels = random.Random(seed), np.random.default_rng(seed)

    def text(count: int) -> str:
        return " ".join(words.choices(WORDS, k=count))

    rows = [
        {
            "id": i,
            "images": [Image.fromarray(pixels.integers(0, 255, (*size.image, 3), dtype=np.uint8))],
            "messages": [
                {"role": "user", "content": f"<image> {text(size.words - size.answers - FRAME + 1)}"},
                {"role": "assistant", "content": text(size.answers - 1)},
            ],
        }
        for i in range(samples)
    ]
    return ChatDataset(rows)


def batch(size: Size, seed: int) -> dict[str, Tensor]:
    """One batch on the model's device."""
    data = dataset(size, seed, size.batch)
    made = collator(size)([data[i] for i in range(size.batch)])
    return {
        key: value.to(size.device, size.dtype) if value.is_floating_point() else value.to(size.device)
        for key, value in made.items()
    }


def describe(size: Size, flex: FlexModel, inputs: dict[str, Tensor]) -> str:
    """Size of the model and of a step, in words."""
    with torch.no_grad():
        counts: Sequence[int] = flex.encode(inputs).counts[0].tolist()
    groups = flex.adapter.parameter_groups()
    millions = {name: sum(p.numel() for p in group) / 1e6 for name, group in groups.items()}
    parts = ", ".join(f"{name.replace('_', ' ')} {count:.1f} M" for name, count in millions.items())
    return (
        f"LLaVA-NeXT with random weights, {str(size.dtype).removeprefix('torch.')}: {parts}; "
        f"vocabulary {size.text['vocab_size']}; a batch of {size.batch}, each {size.words} text tokens "
        f"({size.answers} supervised) and {', '.join(map(str, counts))} visual tokens at the levels"
    )
