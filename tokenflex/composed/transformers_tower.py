"""Vision models of transformers: CLIP, SigLIP, DINOv2, ViT and all others with patch tokens in a row."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel

from tokenflex.composed import plain
from tokenflex.composed.vision import Fit, Layer, Preprocessing, TowerRequest, VisionTower
from tokenflex.errors import ConfigError
from tokenflex.loadable import CODE

HALF = (0.5, 0.5, 0.5)


class TransformersTower(VisionTower):
    """``AutoModel``; of a model for images and texts, its vision half."""

    source = "transformers"

    def __init__(self, trunk: nn.Module, layer: Layer) -> None:
        super().__init__(trunk, layer)
        config: Any = self.trunk.config
        (height, width), (down, across) = _pair(config.image_size), _pair(config.patch_size)
        self.cells = height // down, width // across
        layers = getattr(config, "num_hidden_layers", None)
        for one in self.layers:
            if layers is not None and not -layers - 1 <= one <= layers:
                raise ConfigError(f"layer={one}; this encoder has {layers} layers: {-layers - 1} to {layers}.")

    @classmethod
    def create(cls, request: TowerRequest) -> tuple[VisionTower, dict[str, Any], Preprocessing]:
        """Load the tower that lies in a folder, or under an id on the hub."""
        try:
            config = AutoConfig.from_pretrained(request.name)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"vision={request.name!r} has no known source. Use 'timm/NAME', 'open_clip/NAME@TAG', or a folder or "
                f"hub id of a vision model of transformers; transformers says: {error}"
            ) from error
        config = vision_half(config)
        return cls.from_config(config, request) if not request.pretrained else cls._loaded(config, request)

    @classmethod
    def _loaded(
        cls, config: PreTrainedConfig, request: TowerRequest
    ) -> tuple[VisionTower, dict[str, Any], Preprocessing]:
        trunk = AutoModel.from_pretrained(request.name, config=config)
        return cls.from_model(trunk, request)

    @classmethod
    def from_config(
        cls, config: PreTrainedConfig, request: TowerRequest
    ) -> tuple[VisionTower, dict[str, Any], Preprocessing]:
        """Build the tower of a configuration with random weights."""
        return cls.from_model(AutoModel.from_config(copy.deepcopy(vision_half(config))), request)

    @classmethod
    def from_model(
        cls, trunk: PreTrainedModel, request: TowerRequest
    ) -> tuple[VisionTower, dict[str, Any], Preprocessing]:
        """A model that is loaded already.

        Raises:
            ConfigError: it has no patches, or another image size was asked for than its own.
        """
        config: Any = trunk.config
        size = getattr(config, "image_size", None)
        if size is None or getattr(config, "patch_size", None) is None:
            raise ConfigError(
                f"{type(trunk).__name__} has no image_size and patch_size in its config, so it has no grid of patches; "
                "use a vision transformer such as CLIP, SigLIP, DINOv2 or ViT."
            )
        if request.image_size is not None and request.image_size != _pair(size):
            raise ConfigError(
                f"image_size={request.image_size}, but {type(trunk).__name__} is made for {_pair(size)}; leave it out, "
                "or set image_size in the encoder's own config."
            )
        if request.options:
            raise ConfigError(f"vision_options={dict(request.options)} have no place here; put them into the config.")
        settings = _settings(config.to_dict(), type(trunk).__name__)
        spec = {
            "source": cls.source,
            "name": request.name,
            "config": settings,
            "layer": request.layer,
        }
        return cls(trunk, request.layer), spec, _shown(request, _pair(size))

    @classmethod
    def rebuild(cls, spec: Mapping[str, Any]) -> VisionTower:
        """Build the tower from its configuration alone, with classes of transformers or registered there."""
        where = "vision of a composed model's config.json"
        plain.expect(spec, ("source", "name", "config", "layer"), where)
        settings = _settings(spec["config"], where)
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        return cls(AutoModel.from_config(config, trust_remote_code=False), spec["layer"])

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images channels rows cols"]:
        """Hidden states of the layers; what comes before the patches (class, registers) is dropped."""
        output = self.trunk(pixel_values=pixels, output_hidden_states=self.layers != (-1,), return_dict=True)
        rows, cols = self.cells
        hidden = torch.cat(
            [output.last_hidden_state if one == -1 else output.hidden_states[one] for one in sorted(self.layers)], dim=2
        )
        return hidden[:, hidden.shape[1] - rows * cols :].transpose(1, 2).unflatten(2, (rows, cols))


def vision_half(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the vision model inside one for images and texts."""
    return getattr(config, "vision_config", None) or config


def _settings(config: Any, where: str) -> dict[str, Any]:
    """What a vision model's configuration says under the names that its class has.

    Raises:
        ConfigError: transformers doesn't know its type, it has no patches, or it consists of other models.
    """
    kind = config.get("model_type") if isinstance(config, Mapping) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"{where}: model_type {kind!r} is none that transformers knows, so a saved model couldn't be built. "
            "Upgrade transformers, or register the type (AutoConfig.register, AutoModel.register)."
        )
    known = set(CONFIG_MAPPING[kind]().to_dict())
    found = {key: value for key, value in config.items() if key in known and key not in (*CODE, "_name_or_path")}
    nested = [k for k, v in found.items() if v and ("backbone" in k or (isinstance(v, Mapping) and "model_type" in v))]
    if nested or not {"image_size", "patch_size"} <= known:
        raise ConfigError(
            f"{where}: {kind!r} is no vision transformer by itself ({', '.join(nested) or 'no patches'}); use one such "
            "as CLIP, SigLIP, DINOv2 or ViT."
        )
    return {**found, "model_type": kind}


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def _shown(request: TowerRequest, size: tuple[int, int]) -> Preprocessing:
    """The published image processor's settings; without one, mean and deviation of a half, squashed."""
    settings: Any = None
    if request.name and request.pretrained:
        try:
            settings = AutoImageProcessor.from_pretrained(request.name)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{request.name!r} has weights but no image processor, so the images they expect aren't known; save "
                f"it beside them (image_processor.save_pretrained). transformers says: {error}"
            ) from error
    mean, std = getattr(settings, "image_mean", None), getattr(settings, "image_std", None)
    fit: Fit = "crop" if getattr(settings, "do_center_crop", None) else "squash"
    resample = getattr(settings, "resample", None)
    return Preprocessing(
        image_size=size,
        mean=tuple(mean or HALF),
        std=tuple(std or HALF),
        resample=int(Image.Resampling.BICUBIC if resample is None else resample),
        fit=fit,
    )
