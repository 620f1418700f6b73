"""``ComposedForConditionalGeneration``: a vision encoder, a projector and a causal language model as one model."""

import copy
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenflex import cards, loadable
from tokenflex.composed.config import ComposedConfig
from tokenflex.composed.projector import CUSTOM, build_projector
from tokenflex.composed.vision import rebuild_tower
from tokenflex.errors import ConfigError, InputError

REMEDY = "Save the language model by itself, with language_model.save_pretrained, and compose it again from there."


class ComposedForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A model for images and texts, put together by `tokenflex.compose` or loaded from what it saved.

    Every image becomes one grid of visual tokens, which take the places of its placeholders in the text. What
    comes out is the language model's own output.

    Args:
        config: sizes, and how tower, projector and language model are built.
        vision_tower, multi_modal_projector, language_model: those that are loaded already; what is left out is built
            from the configuration.
    """

    config_class = ComposedConfig
    base_model_prefix = "composed"
    main_input_name = "input_ids"
    input_modalities: ClassVar = ("image", "text")  # pyright: ignore[reportAssignmentType]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: ComposedConfig,
        vision_tower: nn.Module | None = None,
        multi_modal_projector: nn.Module | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        text: Any = config.text_config
        self.vision_tower: Any = rebuild_tower(config.vision or {}) if vision_tower is None else vision_tower
        cells = getattr(self.vision_tower, "cells", None)
        if cells is not None and tuple(cells) != tuple(config.grid):
            raise ConfigError(f"grid={config.grid!r}, but the encoder makes {cells} visual tokens of an image.")
        if multi_modal_projector is None:
            multi_modal_projector = build_projector(config.projector, config.vision_width, text.hidden_size)
        self.multi_modal_projector = multi_modal_projector
        self.language_model: Any = AutoModelForCausalLM.from_config(text) if language_model is None else language_model
        vocabulary = self.language_model.get_input_embeddings().num_embeddings
        if not config.image_token_id < vocabulary or not (config.pad_token_id or 0) < vocabulary:
            raise ConfigError(
                f"image_token_id={config.image_token_id!r} and pad_token_id={config.pad_token_id!r} must be less than "
                f"the {vocabulary} tokens that the language model knows."
            )
        config.text_config = self.language_model.config
        self.generation_config = self.language_model.generation_config
        self.post_init()

    def init_weights(self) -> None:
        """Do nothing: what is in it initialised itself when it was built, and may have been trained since."""

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing, for the same reason; `from_pretrained` refuses files that lack tensors."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model as transformers does, except that it is loaded as it was saved or not at all.

        Raises:
            ConfigError: a file of the folder is damaged, or tensors are missing, have no place, another kind of number
                than the model, or values that aren't finite.
        """
        source = pretrained_model_name_or_path
        asked = kwargs.pop("output_loading_info", False)
        kind: Any = cls.config_class
        entries = loadable.first_look(source, kwargs, kind.model_type)
        with loadable.in_our_words(source):
            made: Any = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        loadable.require_complete(made[1], source)
        loadable.require_kinds(made[0], entries, source)
        loadable.require_sound(dict(made[0].named_parameters()), str(source))
        return made if asked else made[0]

    def get_input_embeddings(self) -> nn.Module:
        """The language model's table of word embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Give the language model another table of word embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head, which makes logits of hidden states."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Give the language model another head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def get_image_features(
        self, pixel_values: Float[Tensor, "images 3 height width"], return_dict: bool = True
    ) -> BaseModelOutputWithPooling:
        """Visual tokens as the language model reads them.

        Returns:
            ``pooler_output``: ``(images, tokens, dim)``, row-major; ``last_hidden_state``: the same before the
            projector.
        """
        weights = next(self.vision_tower.parameters())
        patches = self.vision_tower(pixel_values.to(weights.device, weights.dtype))
        hidden = patches.flatten(2).transpose(1, 2)
        first = next(self.multi_modal_projector.parameters(), None)
        features = self.multi_modal_projector(hidden if first is None else hidden.to(first.device, first.dtype))
        return BaseModelOutputWithPooling(pooler_output=features, last_hidden_state=hidden)

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"] | None = None,
        pixel_values: Float[Tensor, "images 3 height width"] | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Float[Tensor, "rows length dim"] | None = None,
        labels: Int[Tensor, "rows length"] | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The language model's output, images in place.

        Args:
            input_ids: one ``image_token_id`` per visual token.
            pixel_values: the batch's images in the order of their placeholders.
            labels: -100 where nothing is supervised.
            mm_encoder_outputs: what `get_image_features` gave, under ``image``, instead of images; ``pooler_output``
                may have any number of tokens, as a tensor or a list of tensors ending in ``dim``.
            kwargs: anything the language model takes, its cache among them.

        Raises:
            InputError: images and placeholders don't match, or images come without ids.
        """
        outputs = mm_encoder_outputs or {}
        if pixel_values is not None and outputs.get("image") is not None:
            raise InputError(
                "both pixel_values and mm_encoder_outputs['image'] were given; they are two ways to say the same. "
                "Pass one of them."
            )
        image = outputs.get("image")
        if pixel_values is not None:
            image = self.get_image_features(pixel_values)
        if image is not None:
            inputs_embeds = self._merged(input_ids, inputs_embeds, image["pooler_output"])
        elif inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def _merged(
        self,
        input_ids: Int[Tensor, "rows length"] | None,
        inputs_embeds: Float[Tensor, "rows length dim"] | None,
        features: Any,
    ) -> Float[Tensor, "rows length dim"]:
        """Embeddings with visual tokens in the places of the placeholders, row by row."""
        if input_ids is None:
            raise InputError("images need input_ids, which say where they stand; pass the processor's input_ids too.")
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        pieces = [features] if isinstance(features, Tensor) else list(features)
        tokens = torch.cat([piece.reshape(-1, piece.shape[-1]) for piece in pieces]).to(embeds)
        places: Bool[Tensor, "rows length 1"] = (input_ids == self.config.image_token_id).to(embeds.device)[..., None]
        if int(places.sum()) != len(tokens):
            raise InputError(
                f"the text has {int(places.sum())} image placeholders, its images make {len(tokens)} visual tokens. "
                "Make text and images with the same processor call and don't truncate the placeholders."
            )
        return embeds.masked_scatter(places, tokens)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write configuration and weights; weights keep the names they have in memory.

        Raises:
            ConfigError: the configuration wouldn't build this model again.
        """
        config: Any = copy.deepcopy(self.config)
        own = self.multi_modal_projector if self.config.projector == CUSTOM else None  # given again when it is loaded
        with torch.device("meta"):
            twin = type(self)(config, multi_modal_projector=own)
        loadable.require_same_as_built(self, twin, kwargs.get("state_dict"), REMEDY)
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            names = type(self.config).__name__, type(self).__name__
            cards.write_code(Path(save_directory), "tokenflex.composed", *names)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: saved folders name this package, and the files of this class aren't copied into them."""
