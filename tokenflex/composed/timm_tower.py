"""Encoders of timm: everything that gives intermediate features, transformers and convolutions alike."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from tokenflex import reading
from tokenflex.composed import plain
from tokenflex.composed.vision import Fit, Preprocessing, TowerRequest, VisionTower, joined, keep_buffers, required
from tokenflex.errors import ConfigError
from tokenflex.files import as_path
from tokenflex.loadable import TIMM_LOADS, first

FITS: Mapping[str, Fit] = {"squash": "squash", "border": "pad"}
OPTIONS = frozenset((
    "always_partition", "attn_drop_rate", "base_width", "cardinality", "channels", "class_token", "conv_bias",
    "depth", "depths", "dim", "dims", "drop_block_rate", "drop_path_rate", "drop_rate", "dynamic_img_pad",
    "dynamic_img_size", "embed_dim", "embed_dims", "expand_ratio", "fc_norm", "final_norm", "fix_init",
    "global_pool", "growth_rate", "head_dim", "head_init_scale", "head_norm_first", "img_size", "init_values",
    "intermediate_size", "kernel_size", "kernel_sizes", "layer_scale_init_value", "layers", "ls_init_value",
    "mlp_ratio", "mlp_ratios", "no_embed_class", "norm_eps", "num_heads", "num_kv_heads", "num_reg_tokens",
    "output_stride", "patch_drop_rate", "patch_size", "pos_drop_rate", "pos_embed", "pre_norm", "proj_bias",
    "proj_drop_rate", "qk_norm", "qkv_bias", "reg_tokens", "rope_temperature", "rope_theta", "scale_attn_inner",
    "scale_mlp", "sr_ratios", "stem_chs", "stem_size", "stem_type", "stem_width", "strict_img_size",
    "swiglu_mlp", "use_abs_pos_emb", "use_fc_norm", "use_pos_embed", "use_rel_pos_bias", "use_rot_pos_emb",
    "use_shared_rel_pos_bias", "weight_init", "width", "widths", "window_ratio", "window_size",
    "zero_init_last",
))  # fmt: skip
"""Arguments of ``timm.create_model`` that say what the encoder looks like; a saved model may hold these."""

WRAPPED = ("state_dict", "model")
"""Keys under which training scripts keep the weights."""
TRACKED = "num_batches_tracked"
"""Counters of batch normalisation, which old files lack and nothing reads."""


class TimmTower(VisionTower):
    """``timm.create_model``; weights are those timm knows under the name."""

    source = "timm"

    @classmethod
    def create(cls, request: TowerRequest) -> tuple[VisionTower, dict[str, Any], Preprocessing]:
        """Load the tower that a name means, e.g. ``vit_base_patch16_siglip_224.webli``."""
        timm = required("timm")
        requested = dict(request.options or {})
        loading = {key: requested.pop(key) for key in TIMM_LOADS.intersection(requested)}
        options = plain.settings(requested, OPTIONS, "vision_options", "Leave them out.")
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
        spec = {
            "source": cls.source,
            "name": request.name,
            "options": options,
            "layer": request.layer,
        }
        tower = cls._built(spec, pretrained=request.pretrained and request.weights is None, **loading)
        if request.weights is not None:
            _fill(tower.trunk, request.weights)
        if loading and _shapes(tower) != _shapes(cls.rebuild(spec)):
            raise ConfigError(
                f"vision_options: with {sorted(loading)} the encoder has other tensors than {request.name!r} has "
                "without, so it couldn't be loaded again. Say its sizes by themselves, such as img_size."
            )
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
        where = "vision of a composed model's config.json"
        plain.expect(spec, ("source", "name", "options", "layer"), where)
        plain.timm_name(required("timm"), spec["name"], where)
        plain.settings(spec["options"], OPTIONS, f"{where}: options", "Remove them, if you trust the rest of the file.")
        with torch.device("cpu"):
            return cls._built(spec, pretrained=False)

    @classmethod
    def _built(cls, spec: Mapping[str, Any], **loading: Any) -> "TimmTower":
        timm = required("timm")
        trunk = timm.create_model(spec["name"], num_classes=0, **loading, **spec["options"])
        trunk.reset_classifier(0, "")
        return cls(keep_buffers(trunk), spec["layer"])

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images channels rows cols"]:
        """timm's own intermediate features, prefix tokens dropped by it; it gives them in the order of its layers."""
        found = self.trunk.forward_intermediates(
            pixels, indices=[*self.layers], norm=-1 in self.layers, stop_early=True, intermediates_only=True
        )
        return joined(found, sorted(self.layers).index(self.layers[0]))


def _fill(trunk: Any, source: Any) -> None:
    """Put weights into an encoder without its classifier.

    Args:
        source: tensors by name, or the file with them.

    Raises:
        ConfigError: the file isn't one of weights, they are of another encoder, or a number isn't finite.
    """
    named = isinstance(source, Mapping)
    state, wanted = dict(source) if named else _weights(as_path(source)), trunk.state_dict()
    head = trunk.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((head,) if isinstance(head, str) else head))
    state = {name: value for name, value in state.items() if name in wanted or not name.startswith(heads or "\0")}
    missing = [f"{name} is missing" for name in wanted if name not in state and not name.endswith(TRACKED)]
    strange = [f"{name} has no place" for name in state if name not in wanted]
    unequal = [
        f"{name} has the shape {list(value.shape)}, not {list(wanted[name].shape)}"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    where = "" if named else f"={os.fspath(source)!r}"
    if missing or strange or unequal:
        raise ConfigError(
            f"vision_weights{where} are of another encoder: {first([*unequal, *missing, *strange])}. Name the encoder "
            "that they belong to."
        )
    broken = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise ConfigError(
            f"vision_weights{where} hold NaN or infinity in {first(broken)}; finite numbers are expected. Download or "
            "save the file again."
        )
    trunk.load_state_dict(state, strict=False)


def _weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, without what wraps them; read as data only.

    Raises:
        ConfigError: the file can't be read, or holds something else.
    """
    reading.require_file(path)
    if path.suffix == ".safetensors":
        return reading.tensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(
            f"{path} can't be read as weights: {type(error).__name__}: {str(error).splitlines()[0]:.200}. Give a "
            "safetensors file, or what torch.save wrote of a state_dict()."
        ) from error
    for key in WRAPPED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(f"{path} holds a {type(found).__name__} that isn't tensors by name. Give a state_dict().")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _shapes(tower: VisionTower) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tower.state_dict().items()}
