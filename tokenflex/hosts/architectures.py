"""Every architecture the generic adapter serves, by ``model_type``."""

from collections.abc import Mapping
from typing import Any

from tokenflex.hosts import grid_thw, ragged, square
from tokenflex.hosts.architecture import Architecture

ARCHITECTURES: Mapping[str, Architecture] = {
    **square.ARCHITECTURES,
    **ragged.ARCHITECTURES,
    **grid_thw.ARCHITECTURES,
}

ATTENDING = {"full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "moe", "mlp", "attention"}
"""Layer types that keep packed rows apart by their mask, or look at one token at a time."""
BLOCKS = "images attend within themselves, and the host counts those blocks across packed rows"
UNPACKABLE: Mapping[str, str] = {
    "gemma3": BLOCKS,
    "shieldgemma2": BLOCKS,
    "paligemma": BLOCKS,
    "hunyuan_vl": "the host numbers images through the whole row",
}
COLUMNS = "its generate counts padding into positions"
UNGROUPABLE: Mapping[str, str] = {
    "exaone4_5": COLUMNS,
    "hyperclovax_vision_v2": COLUMNS,
}
PROMPT = "prompt tokens attend to text tokens and images behind them"
LOOKING_AHEAD: Mapping[str, str] = {
    "molmo2": PROMPT,
    "paligemma": PROMPT,
}

READABLE = (
    "aya_vision", "cohere2_vision", "deepseek_vl", "gemma3", "idefics3", "internvl", "janus", "llava", "paligemma",
    "perception_lm", "shieldgemma2", "smolvlm", "vipllava",
)  # fmt: skip
"""Whose vision towers' attention can be computed again; their tests compare it with the tower's own."""


def unpackable(config: Any) -> str | None:
    """Why a host's rows can't be packed into one (measured by the law ``packed``); None when they can."""
    text = config.get_text_config()
    if getattr(text, "use_bidirectional_attention", None):
        return BLOCKS
    kinds = {*(getattr(text, "layer_types", None) or ()), *(getattr(text, "layers_block_type", None) or ())}
    carrying = sorted(kinds - ATTENDING)
    if carrying:
        return f"its {', '.join(carrying)} layers carry what they have seen across packed rows"
    return UNPACKABLE.get(config.model_type)


def ungroupable(config: Any) -> str | None:
    """Why a host's rows can't be read in groups (measured by the law ``ragged``); None when they can."""
    if getattr(config.get_text_config(), "use_bidirectional_attention", None) in (True, "all"):
        return "text tokens attend to text tokens behind them"
    return UNGROUPABLE.get(config.model_type)


def looks_ahead(config: Any) -> str | None:
    """Why text tokens in front of an image depend on it (measured by the tests of escalation); None when they don't."""
    if getattr(config.get_text_config(), "use_bidirectional_attention", None):
        return BLOCKS
    return LOOKING_AHEAD.get(config.model_type)
