"""Tokenizer, images and conversation template of a released checkpoint, as a stock processor."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, CLIPVisionConfig, LlavaNextProcessor
from transformers.models.llava_next import LlavaNextImageProcessor

from tokenflex.conversion import layout
from tokenflex.errors import ConfigError

IMAGE = "<image>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VICUNA_V1 = (
    "{% if messages[0].role == 'system' %}"
    "{% if messages[0].content is string %}{{ messages[0].content }}"
    "{% else %}{{ messages[0].content[0].text }}{% endif %}"
    "{% else %}" + SYSTEM + "{% endif %}{{ ' ' }}"
    "{% for message in messages if message.role != 'system' %}"
    "{% if message.role == 'user' %}{{ 'USER: ' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content if part.type == 'image' %}{{ '" + IMAGE + "\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %}{{ ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' }}{% generation %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{{ eos_token }}"
    "{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The conversation wording LLaVA's code calls ``vicuna_v1``; images come before the words of their turn."""


def image_processor(config: layout.Config, tower: CLIPVisionConfig, images: layout.Config) -> Any:
    """The stock image processor with the released settings.

    Args:
        images: the vision tower's ``preprocessor_config.json``, empty where there is none (then CLIP's).
    """
    side = tower.image_size
    settings: Any = {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_grid_pinpoints": [[height, width] for width, height in layout.pinpoints(config)],
        "image_mean": images.get("image_mean", CLIP_MEAN),
        "image_std": images.get("image_std", CLIP_STD),
        "rescale_factor": images.get("rescale_factor", 1 / 255),
        "resample": images.get("resample", 3),
    }
    return LlavaNextImageProcessor(**settings)


def build(source: Path, config: layout.Config, tower: CLIPVisionConfig, settings: layout.Config) -> Any:
    """The stock processor, or only its image half where the checkpoint has no tokenizer.

    Raises:
        ConfigError: the tokenizer can't be read, or its size isn't the model's vocabulary.
    """
    images = image_processor(config, tower, settings)
    if not any((source / name).is_file() for name in TOKENIZER_FILES):
        return images
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, config=tower, padding_side="left", trust_remote_code=False)
    except Exception as error:
        raise ConfigError(
            f"the tokenizer in {source} can't be read ({error}). A tokenizer.model needs: "
            'pip install "tokenflex[convert]".'
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    place = tokenizer.convert_tokens_to_ids(IMAGE)
    if place != config["vocab_size"]:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer) - 1} tokens and the model {config['vocab_size']}, so the image token "
            "would not be the next free one. The tokenizer belongs to another model."
        )
    tokenizer.image_token = IMAGE
    options: Any = {
        "patch_size": tower.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": VICUNA_V1,
    }
    return LlavaNextProcessor(images, tokenizer, **options)
