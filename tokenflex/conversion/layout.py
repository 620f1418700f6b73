"""The released layout: names of its tensors, and what its settings mean here.

``model_type: llava_llama``, as written by the published code of LLaVA-NeXT, AVG-LLaVA (arXiv 2410.02745) and M3
(arXiv 2405.17430).
"""

import ast
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import CLIPVisionConfig, LlavaNextConfig

from tokenflex.errors import ConfigError
from tokenflex.ops.pooling import Windows

Config = dict[str, Any]

HOST_NAMES = (
    ("model.embed_tokens.", "language_model.model.embed_tokens."),
    ("model.layers.", "language_model.model.layers."),
    ("model.norm.", "language_model.model.norm."),
    ("lm_head.", "language_model.lm_head."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.image_newline", "image_newline"),
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower.vision_model."),
)
"""(released, stock) prefixes; stock as in the published ``llava-hf`` folders, which every transformers reads."""

PART_NAMES = (
    ("model.router.merger.", "router.merger."),
    ("model.router.router.", "router.mlp."),
    ("model.router.norm.", "voter.norm."),
    ("model.router.voter", "voter.weight"),
)
"""(released, ours) prefixes."""

OTHER_STOCK_NAMES = (
    ("model.language_model.", "model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.image_newline", "model.image_newline"),
    ("model.vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."),
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("lm_head.", "lm_head."),
)
"""(stock, released) prefixes of the names newer transformers write."""

PER_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")
"""Tensors with one row per token of the vocabulary."""

RECOMPUTED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")
"""Buffers that old transformers saved and every host computes by itself."""

LLAMA_SETTINGS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "pad_token_id", "bos_token_id",
    "eos_token_id", "rope_theta", "rope_scaling", "attention_bias", "attention_dropout", "mlp_bias", "pretraining_tp",
    "use_cache",
)  # fmt: skip

EXPECTED = {
    "model_type": ("llava_llama",),
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_patch_merge_type": ("spatial_unpad",),
    "image_aspect_ratio": ("anyres",),
    "mm_vision_select_feature": ("patch",),
    "mm_use_im_start_end": (False, None),
    "mm_use_im_patch_token": (False, None),
    "tie_word_embeddings": (False, None),
}

KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14-336": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 336, "patch_size": 14, "projection_dim": 768,
    },
}  # fmt: skip

M3_SCALES = (1, 9, 36, 144, 576)
FILTERED_WORDS = 32
LONGEST = 10_000
"""Letters of a list that is written as a text."""


def stock_name(released: str) -> tuple[str, bool] | None:
    """(name here, whether it belongs to the parts) of a released tensor; None if there is no such name."""
    for names, is_part in ((PART_NAMES, True), (HOST_NAMES, False)):
        for old, new in names:
            if released.startswith(old):
                return new + released.removeprefix(old), is_part
    return None


def released_name(name: str, is_part: bool) -> str | None:
    """The released name of a tensor of the host or of the parts; None if it has none."""
    pairs = [(new, old) for old, new in (PART_NAMES if is_part else HOST_NAMES)]
    for new, old in pairs if is_part else (*pairs, *OTHER_STOCK_NAMES):
        if name.startswith(new):
            return old + name.removeprefix(new)
    return None


def check(config: Config) -> None:
    """Refuse what stock LLaVA-NeXT can't express.

    Raises:
        ConfigError: lists every setting that stands in the way.
    """
    wrong = [
        f"{key}={config.get(key)!r} (needed: {' or '.join(map(repr, allowed))})"
        for key, allowed in EXPECTED.items()
        if config.get(key) not in allowed
    ]
    if wrong:
        raise ConfigError(
            f"this checkpoint can't become a stock LLaVA-NeXT: {'; '.join(wrong)}. Only checkpoints with anyres tiles, "
            "unpadded, and an MLP projector have that form; LLaVA-1.5 checkpoints (one padded image) don't."
        )


def tower_config(config: Config, folder_config: Config | None) -> CLIPVisionConfig:
    """The vision tower's settings.

    Args:
        folder_config: what the tower's own ``config.json`` says, where there is one.

    Raises:
        ConfigError: the tower isn't one whose settings are known here.
    """
    name = config.get("mm_vision_tower")
    found: Any = folder_config or KNOWN_TOWERS.get(str(name))
    if found is None:
        raise ConfigError(
            f"mm_vision_tower={name!r} is neither a folder beside the checkpoint nor one of {sorted(KNOWN_TOWERS)}; "
            f"put the tower's config.json into a folder of that name inside the checkpoint's."
        )
    found = found.get("vision_config", found)
    known = set(CLIPVisionConfig().to_dict()) - {"model_type", "architectures", "dtype", "transformers_version"}
    return CLIPVisionConfig(**{key: value for key, value in found.items() if key in known})


def host_config(config: Config, tower: Any) -> LlavaNextConfig:
    """Settings of the stock host; the vocabulary has one more token, the image placeholder."""
    text: Config = {key: config[key] for key in LLAMA_SETTINGS if config.get(key) is not None}
    text |= {"model_type": "llama", "vocab_size": config["vocab_size"] + 1}
    settings: Config = {
        "vision_config": tower,
        "text_config": text,
        "image_token_id": config["vocab_size"],
        "image_grid_pinpoints": [[height, width] for width, height in pinpoints(config)],
        "vision_feature_layer": config["mm_vision_select_layer"],
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "image_seq_length": (tower.image_size // tower.patch_size) ** 2,
        "pad_token_id": config.get("pad_token_id"),
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "dtype": config.get("torch_dtype"),
    }
    return LlavaNextConfig(**settings)


def pinpoints(config: Config) -> list[tuple[int, int]]:
    """(width, height) of every canvas; real configs hold a string."""
    declared = config.get("image_grid_pinpoints")
    pairs = _literal(declared)
    if not (isinstance(pairs, Sequence) and pairs and all(len(pair) == 2 for pair in pairs)):
        raise ConfigError(f"image_grid_pinpoints={declared!r} isn't a list of (width, height) pairs.")
    return [(int(width), int(height)) for width, height in pairs]


def granularities(config: Config) -> tuple[int, ...]:
    """Tokens per tile at every level, coarse to fine."""
    if config.get("vis_token_granularity"):
        return tuple(sorted(map(int, _literal(config["vis_token_granularity"]))))
    if "matryoshka_vis_token_scale" in config:
        scales = _literal(config["matryoshka_vis_token_scale"])
        return tuple(sorted(map(int, scales))) if isinstance(scales, Sequence) and scales else M3_SCALES
    raise ConfigError(
        "the checkpoint's config.json has neither vis_token_granularity (AVG-LLaVA) nor matryoshka_vis_token_scale "
        "(M3), so it was trained at one granularity; load its llava-hf version and use tokenflex.wrap()."
    )


def windows(sizes: Sequence[int], side: int) -> Windows:
    """The published windows that leave ``sizes`` tokens of a ``side`` x ``side`` tile.

    Half and an eighth of the tokens are windows of 1 x 2 and 2 x 4, everything else is square.

    Raises:
        ConfigError: a size that no such window leaves; the published code would silently leave another number.
    """
    total = side * side
    found = []
    for size in sizes:
        square = math.isqrt(total // size) if 0 < size <= total else 0
        window = {total / 2: (1, 2), total / 8: (2, 4)}.get(size, (square, square))
        rows, cols = window
        if not rows or side % rows or side % cols or (side // rows) * (side // cols) != size:
            raise ConfigError(f"granularity {size}: no published window leaves {size} of {side} x {side} tokens.")
        found.append(window)
    return tuple(found)


def router_settings(config: Config) -> Mapping[str, Any]:
    """Settings of the router that a released configuration describes."""
    return {"text_tokens": int(config.get("filtered_text_num") or FILTERED_WORDS), "attend": "tiles", "spill": True}


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if len(value) > LONGEST:
        return None
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
