"""Every stock architecture that is served, by ``model_type``, and what is asked of its row.

To add one, write its row into the module of its family (`square`, `ragged`, `grid_thw`, `tiles`), its name into
`tokenflex.catalog`, and a tiny host into `tokenflex.testing.zoo`.
"""

from collections.abc import Mapping
from typing import Any

from tokenflex.hosts import grid_thw, ragged, square, tiles
from tokenflex.hosts.architecture import ANOTHER_RULE, BLOCKS, Architecture
from tokenflex.hosts.resizing import Resizing

GRIDS: Mapping[str, Architecture] = {
    **square.ARCHITECTURES,
    **ragged.ARCHITECTURES,
    **grid_thw.ARCHITECTURES,
}
"""Those that `tokenflex.hosts.grid.GridAdapter` serves."""

ARCHITECTURES: Mapping[str, Architecture] = {**GRIDS, **tiles.ARCHITECTURES}
"""All of them."""

ATTENDING = {"full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "moe", "mlp", "attention"}
"""Layer types that keep packed rows apart by their mask, or look at one token at a time."""


def unpackable(config: Any) -> str | None:
    """Why a host's rows can't be packed into one (measured by the law ``packed``); None when they can."""
    text = config.get_text_config()
    if getattr(text, "use_bidirectional_attention", None):
        return BLOCKS
    kinds = {*(getattr(text, "layer_types", None) or ()), *(getattr(text, "layers_block_type", None) or ())}
    carrying = sorted(kinds - ATTENDING)
    if carrying:
        return f"its {', '.join(carrying)} layers carry what they have seen across packed rows"
    row = ARCHITECTURES.get(config.model_type)
    return None if row is None else row.packing_refusal


def ungroupable(config: Any) -> str | None:
    """Why a host's rows can't be read in groups (measured by the law ``ragged``); None when they can."""
    if getattr(config.get_text_config(), "use_bidirectional_attention", None) in (True, "all"):
        return "text tokens attend to text tokens behind them"
    row = ARCHITECTURES.get(config.model_type)
    return None if row is None else row.grouping_refusal


def looks_ahead(config: Any) -> str | None:
    """Why text tokens in front of an image depend on it (measured by the tests of escalation); None when they don't."""
    if getattr(config.get_text_config(), "use_bidirectional_attention", None):
        return BLOCKS
    row = ARCHITECTURES.get(config.model_type)
    return None if row is None else row.looks_ahead


def resizing_of(model_type: str) -> Resizing | str:
    """How an architecture's images are made smaller before they are encoded, or why they can't be, as a clause."""
    row = ARCHITECTURES.get(model_type)
    return ANOTHER_RULE if row is None else row.resizing


def levels_of(model_type: str) -> tuple[str, str | None] | None:
    """(Sizes that images of an architecture can have, the setting its processor has for them); None without any."""
    found = resizing_of(model_type)
    return None if isinstance(found, str) else (found.levels, found.setting)
