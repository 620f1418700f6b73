"""The processor of a composed model: the stock LLaVA processor with the encoder's and the tokenizer's settings."""

import copy
from collections.abc import Sequence
from typing import Any

from transformers import LlavaProcessor
from transformers.models.llava import LlavaImageProcessor

from tokenflex.composed.vision import Preprocessing
from tokenflex.errors import ConfigError

IMAGE_TOKEN = "<image>"
VICUNA = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}USER: {% elif message.role == 'assistant' %}ASSISTANT: {% endif %}"
    "{% if message.role == 'assistant' %}{% generation %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}"
    "{{ eos_token }}{% endgeneration %}"
    "{% elif message.content is string %}{{ message.content }} {% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }} {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
"""For tokenizers without a template: the conversation format of Vicuna and LLaVA-1.5."""
FLATTENED = (
    "{%- set flat = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- if message.content is string -%}{%- set flat.messages = flat.messages + [message] -%}{%- else -%}"
    "{%- set one = namespace(text='') -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{%- set one.text = one.text + '<image>\n' -%}"
    "{%- else -%}{%- set one.text = one.text + part.text -%}{%- endif -%}{%- endfor -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=one.text)] -%}{%- endif -%}"
    "{%- endfor -%}{%- set messages = flat.messages -%}"
)
"""Before a template for texts only: images become placeholders in the text."""
PROBE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "probe"}]}]


def build_processor(tokenizer: Any, shown: Preprocessing, grid: Sequence[int]) -> LlavaProcessor:
    """Images as the encoder knows them, ``rows * columns`` placeholders each, the tokenizer's conversation format.

    Args:
        tokenizer: the language model's, with a placeholder (see `with_placeholder`).
        shown: what the encoder's images look like.
        grid: (rows, columns) of visual tokens.

    Raises:
        ConfigError: images can't be cut into that grid of square patches, or can't be fitted so.
    """
    height, width = shown.image_size
    patch = height // grid[0]
    if [height // patch, width // patch] != list(grid):
        raise ConfigError(
            f"images of {height} x {width} pixels give {grid[0]} x {grid[1]} tokens, which aren't square patches; "
            "choose an image_size both sides of which divide alike."
        )
    return LlavaProcessor(
        image_processor(shown),
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=placeholder(tokenizer),
        chat_template=chat_template(tokenizer),
    )


def image_processor(shown: Preprocessing) -> LlavaImageProcessor:
    """Resizing and normalisation.

    Raises:
        ConfigError: cropping and padding, which make squares, were asked for another shape.
    """
    height, width = shown.image_size
    if shown.fit != "squash" and height != width:
        raise ConfigError(
            f"fit={shown.fit!r} makes square images, the encoder's are {height} x {width}; use fit='squash'."
        )
    crops = shown.fit == "crop"
    return LlavaImageProcessor(
        size={"shortest_edge": height} if crops else {"height": height, "width": width},
        crop_size={"height": height, "width": width},
        do_center_crop=crops,
        do_pad=shown.fit == "pad",
        resample=shown.resample,
        image_mean=list(shown.mean),
        image_std=list(shown.std),
    )


def placeholder(tokenizer: Any) -> str:
    """The tokenizer's own image token, or ``<image>``."""
    return getattr(tokenizer, "image_token", IMAGE_TOKEN)


def with_placeholder(tokenizer: Any) -> Any:
    """A copy that has an image token and a padding token, and pads on the left as generation needs.

    A tokenizer without padding pads with its end of sequence; masks and labels tell the two apart.
    """
    made = copy.deepcopy(tokenizer)
    made.add_special_tokens({"extra_special_tokens": [placeholder(made)]}, replace_extra_special_tokens=False)
    if made.pad_token is None:
        made.pad_token = made.eos_token
    made.padding_side = "left"
    return made


def chat_template(tokenizer: Any) -> str:
    """The tokenizer's own template if it has one, told how to write images if it doesn't know; else Vicuna's.

    Raises:
        ConfigError: the template loses images even so.
    """
    own, token = tokenizer.chat_template, placeholder(tokenizer)
    if own is None:
        return VICUNA.replace(IMAGE_TOKEN, token)
    for template in (own, FLATTENED.replace(IMAGE_TOKEN, token) + own):
        if _writes_images(tokenizer, template):
            return template
    raise ConfigError(
        f"the chat template of {type(tokenizer).__name__} doesn't write a turn with an image and text; set "
        "tokenizer.chat_template to one that does, or to None for Vicuna's."
    )


def _writes_images(tokenizer: Any, template: str) -> bool:
    try:
        text = tokenizer.apply_chat_template(PROBE, chat_template=template, tokenize=False)
    except Exception:  # jinja's errors, and whatever a template raises of its own accord
        return False
    return text.count(placeholder(tokenizer)) == 1 and text.count("probe") == 1 and "{'" not in text
