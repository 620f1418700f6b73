"""The hosts the embedded task can be trained with, and what stage 0 needs to know of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenflex.composed import compose
from tokenflex.errors import ConfigError
from tokenflex.quickstart import qwen_host
from tokenflex.quickstart.host import TILE, build_tokenizer, seeded, text_config
from tokenflex.quickstart.pictures import COLS, ROWS

TIMM = {"embed_dim": 96, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0}


@dataclass(frozen=True)
class SmallHost:
    """A host from scratch.

    Attributes:
        model, processor: as `tokenflex.wrap` and the trainer take them.
        tower: the part that stage 0 trains.
        look: from pixels, ``(pictures, views, patches, width)``; the tiles are the last views.
        width: channels of a patch.
        tiles: views that lie side by side and together are the picture.
    """

    model: Any
    processor: Any
    tower: nn.Module
    look: Callable[[Tensor], Float[Tensor, "pictures views patches width"]]
    width: int
    tiles: int


def build(name: str, seed: int, device: torch.device) -> SmallHost:
    """The host of that name; the same seed gives the same weights.

    Raises:
        ConfigError: there is none, or its library isn't installed.
    """
    check(name)
    return HOSTS[name](seed, device)


def check(name: str) -> None:
    """Refuse unknown names.

    Raises:
        ConfigError: with the known ones.
    """
    if name not in HOSTS:
        raise ConfigError(f"quickstart host {name!r} isn't known; use {', '.join(HOSTS)}.")


def _llava_next(seed: int, device: torch.device) -> SmallHost:
    """The whole picture and its two halves, 4 x 4 patches each."""
    made, processor = seeded(seed)
    model: Any = nn.Module.to(made, device)
    tower = model.model.vision_tower

    def look(pixels: Tensor) -> Tensor:
        hidden = tower(pixels.flatten(0, 1), output_hidden_states=True).hidden_states[-1][:, 1:]
        return hidden.unflatten(0, pixels.shape[:2])

    return SmallHost(model, processor, tower, look, tower.config.hidden_size, tiles=2)


def _composed(seed: int, device: torch.device) -> SmallHost:
    """The whole picture as 4 x 8 patches of a timm vision transformer, a projector, the same language model."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    made, processor = compose(
        "timm/vit_tiny_patch16_224",
        text_config(tokenizer),
        tokenizer=tokenizer,
        pretrained=False,
        image_size=(TILE, 2 * TILE),
        vision_options=TIMM,
    )
    model: Any = nn.Module.to(made, device)
    tower = model.vision_tower

    def look(pixels: Tensor) -> Tensor:
        return tower(pixels).flatten(2).transpose(1, 2)[:, None]

    return SmallHost(model, processor, tower, look, TIMM["embed_dim"], tiles=1)


def _qwen2_5_vl(seed: int, device: torch.device) -> SmallHost:
    """The whole picture as 8 x 16 patches, four of which are merged into a token."""
    made, processor = qwen_host.seeded(seed)
    model: Any = nn.Module.to(made, device)
    tower, cells = model.model.visual, ROWS * COLS
    grid = torch.tensor([[1, ROWS * qwen_host.MERGE, COLS * qwen_host.MERGE]], device=device)

    def look(pixels: Tensor) -> Tensor:
        pictures = len(pixels) // (cells * qwen_host.MERGE**2)
        merged = tower(pixels, grid.expand(pictures, -1)).pooler_output
        return merged.unflatten(0, (pictures, 1, cells))

    return SmallHost(model, processor, tower, look, qwen_host.WIDTH, tiles=1)


HOSTS: dict[str, Callable[[int, torch.device], SmallHost]] = {
    "llava-next": _llava_next,
    "composed": _composed,
    "qwen2.5-vl": _qwen2_5_vl,
}
