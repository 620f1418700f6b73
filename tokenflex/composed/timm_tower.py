"""Encoders of timm: everything that gives intermediate features, transformers and convolutions alike."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from tokenflex.composed.vision import Fit, Preprocessing, Request, VisionTower, keep_buffers, required
from tokenflex.errors import ConfigError

FITS: Mapping[str, Fit] = {"squash": "squash", "border": "pad"}


class TimmTower(VisionTower):
    """``timm.create_model``; weights are those timm knows under the name."""

    source = "timm"

    @classmethod
    def create(cls, request: Request) -> tuple[VisionTower, dict[str, Any], Preprocessing]:
        """By name, e.g. ``vit_base_patch16_siglip_224.webli``."""
        timm = required("timm")
        options = dict(request.options or {})
        if not timm.is_model(request.name):
            near = timm.list_models(f"*{request.name.split('.')[0]}*", pretrained=False)[:3]
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise ConfigError(
                f"timm has no model {request.name!r}.{hint} timm.list_models() lists all; "
                'a newer timm knows more: pip install -U "tokenflex[custom]".'
            )
        size = request.image_size
        if size is not None and timm.get_pretrained_cfg(request.name).fixed_input_size:
            options["img_size"] = list(size)
        spec = {"source": cls.source, "name": request.name, "options": options, "layer": request.layer}
        tower = cls._built(spec, request.pretrained)
        data = timm.data.resolve_model_data_config(tower.trunk)
        shown = Preprocessing(
            image_size=size or (data["input_size"][1], data["input_size"][2]),
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            resample=int(Image.Resampling[data["interpolation"].upper()]),
            fit=FITS.get(data["crop_mode"], "crop"),
        )
        return tower, spec, shown

    @classmethod
    def rebuild(cls, spec: Mapping[str, Any]) -> VisionTower:
        """On the CPU even while transformers loads: timm's tables are computed here, not read from a file."""
        with torch.device("cpu"):
            return cls._built(spec, pretrained=False)

    @classmethod
    def _built(cls, spec: Mapping[str, Any], pretrained: bool) -> "TimmTower":
        timm = required("timm")
        trunk = timm.create_model(spec["name"], pretrained=pretrained, num_classes=0, **spec["options"])
        trunk.reset_classifier(0, "")
        return cls(keep_buffers(trunk), spec["layer"])

    def forward(self, pixels: Float[Tensor, "pictures 3 height width"]) -> Float[Tensor, "pictures channels rows cols"]:
        """timm's own intermediate features, prefix tokens dropped by it."""
        found = self.trunk.forward_intermediates(
            pixels, indices=[self.layer], norm=self.layer == -1, stop_early=True, intermediates_only=True
        )
        return found[0]
