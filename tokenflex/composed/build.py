"""``compose``: models from three libraries put together as one model with its processor."""

import dataclasses
import inspect
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from tokenflex.composed import gguf, plain
from tokenflex.composed.config import ComposedConfig
from tokenflex.composed.model import ComposedForConditionalGeneration
from tokenflex.composed.processor import build_processor, placeholder, with_placeholder
from tokenflex.composed.projector import CUSTOM, build_projector
from tokenflex.composed.transformers_tower import TransformersTower
from tokenflex.composed.vision import SOURCES, Fit, Layer, Preprocessing, Size, TowerRequest, VisionTower, source
from tokenflex.errors import ConfigError

Vision = str | PreTrainedConfig | PreTrainedModel
Language = str | PreTrainedConfig | PreTrainedModel


class Composed(NamedTuple):
    """A model and the processor that makes its inputs; save both into one folder."""

    model: ComposedForConditionalGeneration
    processor: LlavaProcessor


def compose(
    vision: Vision,
    language: Language,
    *,
    projector: str | nn.Module = "mlp2x_gelu",
    tokenizer: Any = None,
    pretrained: bool = True,
    image_size: int | Size | None = None,
    layer: Layer = -1,
    fit: Fit | None = None,
    dtype: torch.dtype | None = None,
    vision_weights: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = None,
    vision_options: Mapping[str, Any] | None = None,
) -> Composed:
    """Put a large multimodal model together from a vision encoder and a causal language model.

    Args:
        vision: ``timm/NAME``, ``open_clip/NAME@TAG``, or a folder or hub id of a vision model of transformers, its
            config (random weights) or the loaded model.
        language: folder or hub id of any causal language model of transformers, a GGUF file, its config (random
            weights) or the loaded model, which then becomes part of the new one.
        projector: ``linear``, ``mlp2x_gelu`` (any number of layers), or a module of your own that takes
            ``(images, tokens, width)`` to ``(images, tokens, dim)``.
        tokenizer: the language model's, or its name; None takes the one saved beside it.
        pretrained: load the weights behind names; False gives random ones.
        image_size: pixels of a square side, or (height, width); None keeps the encoder's own.
        layer: of the encoder; -1 is the last, -2 (as LLaVA has it) the last but one. Several, counted from the last,
            are joined on the grid of the one named first: ``(-2, -3, -1)``.
        fit: ``crop``, ``squash`` or ``pad`` images of another shape; None does as the encoder was trained, and
            squashes where the encoder's images aren't square.
        dtype: of all parameters; None keeps the language model's.
        vision_weights: of ``timm/NAME``, a file with its weights (safetensors, or what ``torch.save`` wrote), or the
            tensors by name, in place of those that timm would download; a classifier in it is left out.
        vision_options: further arguments of ``timm.create_model`` or ``open_clip.create_model_and_transforms``.

    Returns:
        ``(model, processor)``. A new projector is untrained: train it first (stage 1).

    Raises:
        ConfigError: one of the three is missing, unknown, or doesn't fit the others; the message says what to do.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    request = TowerRequest("", plain.layers(layer, "layer"), size, vision_options, pretrained, vision_weights)
    tower, spec, shown = _vision(vision, request)
    model, text_tokenizer = _language(language, tokenizer, pretrained, dtype)
    tower, dtype = tower.to(dtype or model.dtype), dtype or model.dtype
    width, *grid = _probe(tower, shown)
    own: Fit = shown.fit if shown.image_size[0] == shown.image_size[1] else "squash"
    processor = build_processor(text_tokenizer, dataclasses.replace(shown, fit=fit or own), grid)
    if len(text_tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(text_tokenizer), mean_resizing=False)
    settings: dict[str, Any] = {
        "vision": spec,
        "image_size": list(shown.image_size),
        "grid": grid,
        "vision_width": width,
    }
    made = _joined({**settings, **_of_text(model, text_tokenizer)}, tower, projector, model)
    nn.Module.to(made, dtype)
    return Composed(made.eval(), processor)


def _of_text(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Settings of a composed model that its language model and tokenizer give."""
    return {
        "text_config": model.config,
        "image_token_id": tokenizer.convert_tokens_to_ids(placeholder(tokenizer)),
        "pad_token_id": tokenizer.pad_token_id,
        "attn_implementation": model.config._attn_implementation,
    }


def _joined(
    settings: dict[str, Any], tower: VisionTower, projector: str | nn.Module, model: Any
) -> ComposedForConditionalGeneration:
    if not isinstance(projector, str):
        config = ComposedConfig(**settings, projector=CUSTOM)
        return ComposedForConditionalGeneration(config, tower, projector, model)
    made = build_projector(projector, settings["vision_width"], model.get_input_embeddings().embedding_dim)
    return ComposedForConditionalGeneration(ComposedConfig(**settings, projector=projector), tower, made, model)


def _vision(vision: Vision, request: TowerRequest) -> tuple[VisionTower, dict[str, Any], Preprocessing]:
    if request.weights is not None and not isinstance(vision, str):
        raise ConfigError(f"vision_weights goes with 'timm/NAME'; vision is a {type(vision).__name__} already.")
    if isinstance(vision, PreTrainedModel):
        name = vision.config.name_or_path
        return TransformersTower.from_model(vision, dataclasses.replace(request, name=name, pretrained=True))
    if isinstance(vision, PreTrainedConfig):
        return TransformersTower.from_config(vision, dataclasses.replace(request, pretrained=False))
    if not isinstance(vision, str):
        raise ConfigError(
            f"vision is a {type(vision).__name__}; give 'timm/NAME', 'open_clip/NAME@TAG', or a vision model of "
            "transformers (name, config or model)."
        )
    prefix, _, name = vision.partition("/")
    if request.weights is not None and prefix != "timm":
        raise ConfigError(
            f"vision_weights={request.weights!r:.200} goes with 'timm/NAME', not with {vision!r}. For an encoder of "
            "transformers name a folder with its config and weights."
        )
    if prefix in SOURCES and name:
        return source(prefix).create(dataclasses.replace(request, name=name))
    return TransformersTower.create(dataclasses.replace(request, name=vision))


def _tokenizer(name: str) -> Any:
    """The tokenizer of a folder, a hub id or a GGUF file.

    Raises:
        ConfigError: there is none that can be read.
    """
    try:
        return gguf.tokenizer(name) if gguf.is_gguf(name) else AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"no tokenizer can be loaded from {name!r}: {error!s:.500} Give tokenizer= another folder or hub id, or a "
            "loaded one."
        ) from error


def _language(language: Language, tokenizer: Any, pretrained: bool, dtype: torch.dtype | None) -> tuple[Any, Any]:
    """The model and its tokenizer, the latter with a placeholder.

    Raises:
        ConfigError: it isn't a causal language model that takes embeddings, or has no tokenizer.
    """
    named = language if isinstance(language, str) else getattr(language, "name_or_path", "")
    try:
        if isinstance(language, PreTrainedModel):
            model: Any = language
        elif gguf.is_gguf(language):
            model = gguf.language_model(named, dtype)
        elif isinstance(language, str) and pretrained:
            model = AutoModelForCausalLM.from_pretrained(language)
        else:
            config = AutoConfig.from_pretrained(language) if isinstance(language, str) else language
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"language={language if isinstance(language, str) else type(language).__name__!r} can't be loaded as a "
            f"causal language model: {error} Give a folder or hub id, a config or a loaded model of one."
        ) from error
    reason = _unfit(model)
    if reason:
        raise ConfigError(f"{type(model).__name__} can't be the language model: {reason}.")
    if tokenizer is None and not named:
        raise ConfigError(
            f"language is a {type(language).__name__} without a name, so its tokenizer can't be found; pass "
            "tokenizer=..., an object or a name."
        )
    if tokenizer is None or isinstance(tokenizer, str):
        tokenizer = _tokenizer(tokenizer or named)
    return model, with_placeholder(tokenizer)


def _unfit(model: Any) -> str | None:
    """Why visual tokens can't be put into it, as a sentence, or None."""
    if not model.can_generate() or model.config.is_encoder_decoder:
        return "it isn't a causal (decoder-only) model that generates"
    if not {"inputs_embeds", "labels"} <= set(inspect.signature(model.forward).parameters):
        return "its forward takes no inputs_embeds, so visual tokens have no way in"
    if not isinstance(model.get_input_embeddings(), nn.Embedding):
        return "it has no table of input embeddings"
    if model._is_stateful:
        return "it keeps a state that can't be rewound; use a model with a key-value cache"
    return None


@torch.no_grad()
def _probe(tower: VisionTower, shown: Preprocessing) -> tuple[int, int, int]:
    """(width, rows, columns) of an image's features, found by encoding an empty one.

    Raises:
        ConfigError: the encoder gives no grid for images of this size.
    """
    weights = next(tower.parameters())
    mode = tower.training
    try:
        features = tower.eval()(weights.new_zeros(1, len(shown.mean), *shown.image_size))
    except (AssertionError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"this encoder gives no grid of patch features for images of {shown.image_size[0]} x "
            f"{shown.image_size[1]} pixels: {error} Choose another image_size or encoder."
        ) from error
    tower.train(mode)
    return features.shape[1], features.shape[2], features.shape[3]
