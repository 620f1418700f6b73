"""Image towers of open_clip."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from tokenflex.composed.vision import Fit, Preprocessing, Request, VisionTower, keep_buffers, required
from tokenflex.errors import ConfigError

FITS: Mapping[str, Fit] = {"squash": "squash", "longest": "pad"}
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
"""A text tower as small as can be: only the image tower is kept."""


class OpenClipTower(VisionTower):
    """``open_clip.create_model_and_transforms``; the name is ``MODEL@TAG``, the tag naming the weights."""

    source = "open_clip"

    @classmethod
    def create(cls, request: Request) -> tuple[VisionTower, dict[str, Any], Preprocessing]:
        """By name and tag, e.g. ``ViT-B-16@laion2b_s34b_b88k``; ``hf-hub:org/model`` needs no tag."""
        open_clip = required("open_clip")
        name, _, tag = request.name.partition("@")
        settings = open_clip.get_model_config(name)
        if settings is None:
            raise ConfigError(f"open_clip has no model {name!r}; open_clip.list_models() lists all.")
        hub = ":" in name
        tags = [] if hub else open_clip.list_pretrained_tags_by_model(name)
        if request.pretrained and not hub and not tag:
            raise ConfigError(
                f"vision='open_clip/{name}' doesn't say which weights; write 'open_clip/{name}@TAG' with one of "
                f"{', '.join(tags) or 'your files'}, or pass pretrained=False."
            )
        model, _, _ = open_clip.create_model_and_transforms(
            name,
            pretrained=tag or None if request.pretrained else None,
            load_weights=request.pretrained,
            force_image_size=request.image_size,
            **(request.options or {}),
        )
        settings = {**settings, **(request.options or {})}
        vision = {**settings["vision_cfg"], "timm_model_pretrained": False}
        if request.image_size is not None:
            vision["image_size"] = list(request.image_size)
        spec = {
            "source": cls.source,
            "name": request.name,
            "embed_dim": settings["embed_dim"],
            "vision_cfg": vision,
            "quick_gelu": bool(settings.get("quick_gelu", False)),
            "layer": request.layer,
        }
        return cls(keep_buffers(model.visual), request.layer), spec, _shown(open_clip.get_model_preprocess_cfg(model))

    @classmethod
    def rebuild(cls, spec: Mapping[str, Any]) -> VisionTower:
        """From the settings alone, on the CPU even while transformers loads."""
        open_clip = required("open_clip")
        with torch.device("cpu"):
            model = open_clip.CLIP(
                embed_dim=spec["embed_dim"],
                vision_cfg=dict(spec["vision_cfg"]),
                text_cfg=NO_TEXT,
                quick_gelu=spec["quick_gelu"],
            )
        visual: Any = model.visual
        if "timm_model_name" in spec["vision_cfg"] and "image_size" in spec["vision_cfg"]:
            visual.set_input_size(spec["vision_cfg"]["image_size"])
        return cls(keep_buffers(visual), spec["layer"])

    def forward(self, pixels: Float[Tensor, "pictures 3 height width"]) -> Float[Tensor, "pictures channels rows cols"]:
        """open_clip's own intermediate features, the class token dropped by it."""
        found = self.trunk.forward_intermediates(
            pixels,
            indices=[self.layer],
            normalize_intermediates=self.layer == -1,
            stop_early=True,
            intermediates_only=True,
        )
        return found["image_intermediates"][0]


def _shown(settings: Mapping[str, Any]) -> Preprocessing:
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocessing(
        image_size=(height, width),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        resample=int(Image.Resampling[settings["interpolation"].upper()]),
        fit=FITS.get(settings["resize_mode"], "crop"),
    )
