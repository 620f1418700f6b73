"""Qwen2.5-VL of transformers' own classes with random weights: a request to measure, and what it costs in FLOPs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

PAD, BOS, EOS, START, END, IMAGE, VIDEO, WORD = range(8)
CHANNELS, FRAMES = 3, 2
"""Of a patch: an image is two equal frames."""


@dataclass(frozen=True)
class QwenSize:
    """A model and what it is asked.

    Attributes:
        vision, text: of the `Qwen2_5_VLConfig`.
        image: side in pixels; a multiple of four tokens' sides, so that the levels' numbers of tokens are exact.
        words: text tokens of a request.
        device, dtype: where the host lives, and as what.
        pairs: rounds that are timed.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    image: int
    words: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    pairs: int = 10

    @property
    def patches(self) -> int:
        """Of one side of the image."""
        return self.image // self.vision["patch_size"]


VISION = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": FRAMES, "window_size": 112}
TINY = QwenSize(
    vision={**VISION, "depth": 2, "hidden_size": 32, "intermediate_size": 84, "num_heads": 4, "out_hidden_size": 64,
            "fullatt_block_indexes": [1]},
    text={"vocab_size": 512, "hidden_size": 64, "intermediate_size": 340, "num_hidden_layers": 3,
          "num_attention_heads": 8, "num_key_value_heads": 2},
    image=224, words=8, pairs=1,
)  # fmt: skip
SMALL = QwenSize(
    vision={**VISION, "depth": 8, "hidden_size": 256, "intermediate_size": 684, "num_heads": 8, "out_hidden_size": 384,
            "fullatt_block_indexes": [7]},
    text={"vocab_size": 8192, "hidden_size": 384, "intermediate_size": 2032, "num_hidden_layers": 28,
          "num_attention_heads": 8, "num_key_value_heads": 1},
    image=560, words=16,
)  # fmt: skip
QWEN_7B = QwenSize(
    vision={**VISION, "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31]},
    text={"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
          "num_attention_heads": 28, "num_key_value_heads": 4},
    image=1120, words=64, device="cuda", dtype=torch.bfloat16, pairs=20,
)  # fmt: skip
SIZES = {"tiny": TINY, "small": SMALL, "7b": QWEN_7B}
"""``small`` has the shares of the 7B model's FLOPs: tower, router and language model (tests/benchmarks)."""


def host(size: QwenSize, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The stock model, with random weights."""
    heads = size.text["num_attention_heads"]
    width = size.text["hidden_size"] // heads // 2
    section = [width - 2 * (3 * width // 8), 3 * width // 8, 3 * width // 8]
    text = {**size.text, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}}
    text |= {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "max_position_embeddings": 8192}
    config = Qwen2_5_VLConfig(
        vision_config=size.vision, text_config=text, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(size.dtype)
    try:
        with torch.device(size.device):
            made = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    made.generation_config.pad_token_id, made.generation_config.eos_token_id = PAD, EOS
    return made.eval()


def request(size: QwenSize, seed: int) -> dict[str, Tensor]:
    """One image of noise and some words, as the processor would give them."""
    noise = torch.Generator().manual_seed(seed)
    side, patch = size.patches, size.vision["patch_size"]
    pixels = torch.randn(side * side, CHANNELS * FRAMES * patch * patch, generator=noise)
    tokens = side * side // size.vision["spatial_merge_size"] ** 2
    said = torch.randint(WORD, size.text["vocab_size"], (size.words - 3,), generator=noise)
    ids = torch.tensor([[BOS, START, *[IMAGE] * tokens, END, *said.tolist()]])
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": pixels.to(size.dtype),
        "image_grid_thw": torch.tensor([[1, side, side]]),
    }
    return {name: value.to(size.device) for name, value in made.items()}


@dataclass(frozen=True)
class Work:
    """FLOPs of one request, without those of sums, norms and activations.

    Attributes:
        tower: vision tower and merger on the image that is used.
        decision: what is encoded only to be looked at, and router and voter.
        language: prefill and decoding.
    """

    tower: int
    decision: int
    language: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.tower + self.decision + self.language


class Arithmetic:
    """What a request costs at any size, without running it.

    Args:
        answers: new tokens.
    """

    def __init__(self, size: QwenSize, answers: int) -> None:
        self.size, self.answers = size, answers

    def tower(self, share: float = 1.0) -> int:
        """Vision tower and merger on an image that keeps ``share`` of its pixels."""
        vision, merge = self.size.vision, self.size.vision["spatial_merge_size"]
        wide, hidden, depth = vision["hidden_size"], vision["intermediate_size"], vision["depth"]
        side = round(self.size.patches * share**0.5)
        patches, full = side * side, len(vision["fullatt_block_indexes"])
        per_patch = CHANNELS * FRAMES * vision["patch_size"] ** 2 * wide
        per_patch += depth * (4 * wide * wide + 3 * wide * hidden)
        pairs = full * patches**2 + (depth - full) * _in_windows(side, vision["window_size"] // vision["patch_size"])
        merged = merge * merge * wide
        merger = patches // merge**2 * (merged * merged + merged * vision["out_hidden_size"])
        return 2 * (patches * per_patch + merger) + 4 * wide * pairs

    def language(self, visual: int) -> int:
        """Prefill of so many visual tokens and the words, then all new tokens but the first."""
        text = self.size.text
        wide, layers = text["hidden_size"], text["num_hidden_layers"]
        keys = 2 * wide * wide * text["num_key_value_heads"] // text["num_attention_heads"]
        per_token = layers * (2 * wide * wide + keys + 3 * wide * text["intermediate_size"])
        prompt = visual + self.size.words
        longer = range(prompt + 1, prompt + self.answers)
        pairs = layers * (prompt**2 + sum(longer))
        head = self.answers * wide * text["vocab_size"]
        return 2 * (per_token * (prompt + len(longer)) + head) + 4 * wide * pairs

    def router(self, finest: int, rows: int, words: int, levels: int) -> int:
        """The avg router on one view: what attends is linear, so it runs on the finest tokens and the words.

        Args:
            finest: tokens of the finest entry that it sees.
            rows: tokens of all entries.
        """
        wide = self.size.text["hidden_size"]
        attending = (finest + words) * 2 * wide * wide
        return 2 * (attending + (rows + words) * (3 * wide * wide + wide * levels))

    def visual(self, share: float = 1.0) -> int:
        """Visual tokens of an image that keeps ``share`` of its pixels."""
        side = round(self.size.patches * share**0.5) // self.size.vision["spatial_merge_size"]
        return side * side

    def after(self, level: int, shares: Sequence[float], words: int | None) -> Work:
        """A level that is pooled from the whole image's tokens.

        Args:
            shares: of the tokens, by level.
            words: that take part in the router; None: the level is forced.
        """
        rows = sum(self.visual(share) for share in shares)
        decision = 0 if words is None else self.router(self.visual(), rows, words, len(shares))
        return Work(self.tower(), decision, self.language(self.visual(shares[level])))

    def before(self, level: int, shares: Sequence[float], words: int | None) -> Work:
        """A level that is a smaller image; the router looks at the smallest, and at its tokens pooled by 2 x 2."""
        tower, decision = self.tower(shares[level]), 0
        if words is not None:
            seen = self.visual(shares[0])
            decision = self.router(seen, seen + (-(-round(seen**0.5) // 2)) ** 2, words, len(shares))
            decision += self.tower(shares[0]) if level else 0
        return Work(tower, decision, self.language(self.visual(shares[level])))


def _in_windows(side: int, window: int) -> int:
    """Pairs of patches that look at each other within windows over a square image."""
    parts = [window] * (side // window) + ([side % window] if side % window else [])
    return sum((rows * cols) ** 2 for rows in parts for cols in parts)


def on(size: QwenSize, device: str) -> QwenSize:
    """The same size elsewhere."""
    return replace(size, device=device)
