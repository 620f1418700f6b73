"""The host: EfficientNet-Lite0 with its ImageNet weights and SmolLM2-135M-Instruct, put together by ``compose``."""

from typing import Any

import torch

from tokenflex.composed import compose
from tokenflex.composed.build import Composed
from tokenflex.errors import ConfigError
from tokenflex.study.images import SIDE
from tokenflex.study.sources import LANGUAGE, TOWER, package_file

NAME = "tf_efficientnet_lite0"
LAYERS = (-2, -3, -1)
"""Strides 16, 8 and 32, joined on the grid of the first: 12 x 12 tokens of 592 channels."""
WORDS = 1200
"""Words that images show, before they are shared out to training and test."""
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def build(seed: int) -> Composed:
    """The untrained model: tower and language model pretrained, the projector random by ``seed``.

    The language model is in bfloat16, everything else in float32.

    Raises:
        ConfigError: a package isn't installed, or its file isn't what is expected.
    """
    from timm import create_model

    language, weights = package_file(LANGUAGE, ".gguf"), package_file(TOWER, ".pth")
    state: dict[str, Any] = torch.load(weights, weights_only=True)
    names = create_model(NAME).state_dict()
    if [value.shape for value in state.values()] != [value.shape for value in names.values()]:
        raise ConfigError(f"{weights} doesn't hold the weights of {NAME}; install the package {TOWER} 0.1.0.")
    torch.manual_seed(seed)
    made = compose(
        f"timm/{NAME}",
        str(language),
        vision_weights=dict(zip(names, state.values(), strict=True)),
        image_size=SIDE,
        layer=LAYERS,
        dtype=torch.float32,
    )
    made.model.language_model.to(torch.bfloat16)
    made.model.vision_tower.to(memory_format=torch.channels_last)
    return made


def with_lora(host: Any, rank: int) -> Any:
    """The host with adapters on every linear layer of its language model, to be merged by ``merge_and_unload``.

    The projector is trained as it is, beside them.

    Raises:
        ConfigError: PEFT isn't installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as missing:
        raise ConfigError(f"the study needs PEFT ({missing}): pip install 'tokenflex[study]'.") from missing
    adapted = get_peft_model(host, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS))
    host.multi_modal_projector.requires_grad_(True)
    return adapted


def short_words(tokenizer: Any, count: int = WORDS) -> list[str]:
    """The first English-looking words of a vocabulary, which are the frequent ones: three to five letters, in capitals.

    Args:
        tokenizer: with byte-level pieces, in which ``Ġ`` begins a word.
    """
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    words = (piece[1:] for piece, _ in pieces if piece.startswith("Ġ"))
    found = (word.upper() for word in words if word.isascii() and word.isalpha() and word.islower())
    return list(dict.fromkeys(word for word in found if 3 <= len(word) <= 5))[:count]
