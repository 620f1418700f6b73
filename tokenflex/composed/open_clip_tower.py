"""Image towers of open_clip."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from tokenflex.composed import plain
from tokenflex.composed.vision import Fit, Preprocessing, TowerRequest, VisionTower, joined, keep_buffers, required
from tokenflex.errors import ConfigError

FITS: Mapping[str, Fit] = {"squash": "squash", "longest": "pad"}
VISION = frozenset((
    "attentional_pool", "attn_pooler_heads", "attn_pooler_queries", "block_type", "final_ln_after_pool",
    "head_width", "image_size", "layers", "ls_init_value", "mlp_ratio", "no_ln_pre", "output_tokens",
    "patch_dropout", "patch_size", "pool_type", "pos_embed_type", "qk_norm", "scale_attn", "scale_attn_inner",
    "scale_fc", "scale_heads", "scaled_cosine_attn", "timm_drop", "timm_drop_path", "timm_model_name",
    "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "width",
))  # fmt: skip
"""Settings of an image tower; a saved model may hold these, and of activations and norms those of ``INNER``."""
INNER = {"act_kwargs": ("approximate",), "norm_kwargs": ("bias", "elementwise_affine", "eps")}
OPTIONS = frozenset({"embed_dim", "force_patch_dropout", "force_quick_gelu", "quick_gelu", "vision_cfg"})
LOADING = frozenset((
    "aug_cfg", "cache_dir", "device", "force_context_length", "force_custom_text", "force_preprocess_cfg",
    "image_interpolation", "image_mean", "image_resize_mode", "image_std", "init_logit_bias",
    "init_logit_scale", "multimodal_cfg", "nonscalar_logit_scale", "output_dict", "precision", "pretrained_hf",
    "pretrained_image", "pretrained_image_path", "pretrained_text", "pretrained_text_path",
    "require_pretrained", "text_cfg", "weights_only",
))  # fmt: skip
"""Options that say where weights come from, or concern texts and images; they aren't needed to load again."""
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
"""A text tower as small as can be: only the image tower is kept."""


class OpenClipTower(VisionTower):
    """``open_clip.create_model_and_transforms``; the name is ``MODEL@TAG``, the tag naming the weights."""

    source = "open_clip"

    @classmethod
    def create(cls, request: TowerRequest) -> tuple[VisionTower, dict[str, Any], Preprocessing]:
        """Load the tower of a name and tag, e.g. ``ViT-B-16@laion2b_s34b_b88k``; ``hf-hub:org/model`` needs no tag."""
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
        spec = _spec(request, settings)
        model, _, _ = open_clip.create_model_and_transforms(
            name,
            pretrained=tag or None if request.pretrained else None,
            load_weights=request.pretrained,
            force_image_size=request.image_size,
            **(request.options or {}),
        )
        return cls(keep_buffers(model.visual), request.layer), spec, _shown(open_clip.get_model_preprocess_cfg(model))

    @classmethod
    def rebuild(cls, spec: Mapping[str, Any]) -> VisionTower:
        """Build the tower from its settings alone, on the CPU even while transformers loads."""
        where = "vision of a composed model's config.json"
        plain.expect(spec, ("source", "name", "embed_dim", "vision_cfg", "quick_gelu", "layer"), where)
        _require_plain(spec, where, "Remove them, if you trust the rest of the file.")
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

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images channels rows cols"]:
        """open_clip's own intermediate features, the class token dropped by it."""
        found = self.trunk.forward_intermediates(
            pixels,
            indices=[*self.layers],
            normalize_intermediates=-1 in self.layers,
            stop_early=True,
            intermediates_only=True,
        )
        return joined(found["image_intermediates"], sorted(self.layers).index(self.layers[0]))


def _spec(request: TowerRequest, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The data to build the tower again.

    Args:
        settings: of open_clip, for the whole model.

    Raises:
        ConfigError: it couldn't be built again, because an option isn't known or a setting isn't plain.
    """
    options = dict(request.options or {})
    unknown = sorted(set(options) - OPTIONS - LOADING)
    if unknown:
        raise ConfigError(
            f"vision_options {unknown} couldn't be loaded again from a file. Leave them out; known are "
            f"{', '.join(sorted(OPTIONS | LOADING))}."
        )
    settings = {**settings, **options}
    vision = {**settings["vision_cfg"], "timm_model_pretrained": False}
    if request.image_size is not None:
        vision["image_size"] = list(request.image_size)
    if options.get("force_patch_dropout") is not None:
        vision["patch_dropout"] = options["force_patch_dropout"]
    spec = {
        "source": OpenClipTower.source,
        "name": request.name,
        "embed_dim": settings["embed_dim"],
        "vision_cfg": vision,
        "quick_gelu": bool(settings.get("quick_gelu", False) or options.get("force_quick_gelu", False)),
        "layer": request.layer,
    }
    _require_plain(spec, f"open_clip's settings of {request.name!r}", "Choose another model.")
    return spec


def _require_plain(spec: Mapping[str, Any], where: str, remedy: str) -> None:
    tower_config = spec["vision_cfg"]
    inner = (
        {key: tower_config[key] for key in INNER if tower_config.get(key) is not None}
        if isinstance(tower_config, Mapping)
        else {}
    )
    for key, value in inner.items():
        plain.settings(value, INNER[key], f"{where}: {key}", remedy)
    own = (
        {k: v for k, v in tower_config.items() if k not in INNER} if isinstance(tower_config, Mapping) else tower_config
    )
    plain.settings(own, VISION, f"{where}: vision_cfg", remedy)
    rest = {key: spec[key] for key in ("embed_dim", "quick_gelu")}
    plain.settings(rest, rest, where, remedy)
    if tower_config.get("timm_model_pretrained"):
        raise ConfigError(f"{where}: timm_model_pretrained would fetch weights; they come with the model. {remedy}")
    if tower_config.get("timm_model_name") is not None:
        plain.timm_name(required("timm"), tower_config["timm_model_name"], where)


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
