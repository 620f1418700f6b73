"""The hosts the embedded task can be trained with, and what stage 0 needs to know of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenflex.composed import compose
from tokenflex.errors import ConfigError
from tokenflex.quickstart import qwen_host
from tokenflex.quickstart.host import TILE, build_tokenizer, seeded, text_config

TIMM = {"embed_dim": 96, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0}


@dataclass(frozen=True)
class SmallHost:
    """A host from scratch.

    Attributes:
        model, processor: as `tokenflex.wrap` and the trainer take them.
        tower: what stage 0 trains.
        look: from what the processor makes of images of one size, ``(images, views, patches, width)``; the tiles
            are the last views.
        width: channels of a patch.
        tiles: views that lie side by side and together are the image.
        shares: of the image's pixels that the tower is shown in stage 0; 1: all.
    """

    model: Any
    processor: Any
    tower: nn.Module
    look: Callable[[Mapping[str, Tensor]], Float[Tensor, "images views patches width"]]
    width: int
    tiles: int
    shares: tuple[float, ...] = (1.0,)


def build_small_host(name: str, seed: int, device: torch.device) -> SmallHost:
    """The host of that name; the same seed gives the same weights.

    Raises:
        ConfigError: there is none, or its library isn't installed.
    """
    require_known(name)
    return HOSTS[name](seed, device)


def require_known(name: str) -> str:
    """The name, if it is known.

    Raises:
        ConfigError: with the known ones.
    """
    if name not in HOSTS:
        raise ConfigError(f"quickstart host {name!r} isn't known; use {', '.join(HOSTS)}.")
    return name


def _llava_next(seed: int, device: torch.device) -> SmallHost:
    """The whole image and its two halves, 4 x 4 patches each."""
    made, processor = seeded(seed)
    model: Any = nn.Module.to(made, device)
    tower = model.model.vision_tower

    def look(seen: Mapping[str, Tensor]) -> Tensor:
        pixels = seen["pixel_values"]
        hidden = tower(pixels.flatten(0, 1), output_hidden_states=True).hidden_states[-1][:, 1:]
        return hidden.unflatten(0, pixels.shape[:2])

    return SmallHost(model, processor, tower, look, tower.config.hidden_size, tiles=2)


def _composed(seed: int, device: torch.device) -> SmallHost:
    """The whole image as 4 x 8 patches of a timm vision transformer, a projector, the same language model."""
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

    def look(seen: Mapping[str, Tensor]) -> Tensor:
        return tower(seen["pixel_values"]).flatten(2).transpose(1, 2)[:, None]

    return SmallHost(model, processor, tower, look, TIMM["embed_dim"], tiles=1)


def _qwen2_5_vl(seed: int, device: torch.device) -> SmallHost:
    """The whole image as 8 x 16 patches, four of which are merged into a token.

    The published towers were trained on images of all sizes, so stage 0 shows this one several.
    """
    made, processor = qwen_host.seeded(seed)
    model: Any = nn.Module.to(made, device)
    tower = model.model.visual

    def look(seen: Mapping[str, Tensor]) -> Tensor:
        sizes = seen["image_grid_thw"]
        return tower(seen["pixel_values"], sizes).pooler_output.unflatten(0, (len(sizes), 1, -1))

    return SmallHost(model, processor, tower, look, qwen_host.WIDTH, tiles=1, shares=qwen_host.SHARES)


HOSTS: dict[str, Callable[[int, torch.device], SmallHost]] = {
    "llava-next": _llava_next,
    "composed": _composed,
    "qwen2.5-vl": _qwen2_5_vl,
}
