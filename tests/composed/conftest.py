"""Tiny composed models with random weights: three vision libraries, four language models, no network."""

import json

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    CLIPVisionConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

import tokenflex
from tests.conftest import image
from tokenflex import catalog
from tokenflex.testing.tiny_hosts import tiny_tokenizer

SIDE, PATCH, DIM = 32, 8, 32
VOCABULARY = len(tiny_tokenizer())
LANGUAGE = {
    "vocab_size": VOCABULARY, "hidden_size": DIM, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 512, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip
TIMM = {"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": PATCH}
OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIDE, "layers": 3, "width": 24, "head_width": 12, "patch_size": PATCH},
    "text_cfg": {"context_length": 4, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1},
}
LANGUAGES = {
    "llama": lambda: LlamaConfig(**LANGUAGE, num_key_value_heads=2),
    "qwen2, tied": lambda: Qwen2Config(**LANGUAGE, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**LANGUAGE, num_key_value_heads=2, head_dim=8),
    "gpt-neox": lambda: GPTNeoXConfig(**LANGUAGE),
}


@pytest.fixture(scope="session", autouse=True)
def open_clip_model(tmp_path_factory):
    """open_clip reads architectures from files."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "tiny.json").write_text(json.dumps(OPEN_CLIP))
    open_clip.add_model_config(folder)


def make(kind: str, **options):
    """``timm``, ``open_clip``, ``video`` or ``siglip``, each with another language model."""
    torch.manual_seed(7)
    told = {"tokenizer": tiny_tokenizer(), "pretrained": False, **options}
    if kind == "timm":
        told = {"image_size": (SIDE, 2 * SIDE), "vision_options": TIMM, **told}
        made = tokenflex.compose("timm/vit_tiny_patch16_224", LANGUAGES["llama"](), **told)
    elif kind == "open_clip":
        made = tokenflex.compose("open_clip/tiny", LANGUAGES["qwen2, tied"](), **told)
    elif kind == "video":
        made = tokenflex.compose(CLIPVisionConfig(**VISION), LANGUAGES["gpt-neox"](), **{"layer": -2, **told})
    else:
        made = tokenflex.compose(SiglipVisionConfig(**VISION), LANGUAGES["qwen3"](), **told)
    with torch.no_grad():  # so that images differ visibly
        for weights in made.model.multi_modal_projector.parameters():
            weights.mul_(4)
    return made


@pytest.fixture(scope="session", params=["timm", "open_clip", "video", "siglip"])
def composed(request):
    return make(request.param)


@pytest.fixture(scope="session")
def host(composed):
    return composed.model


@pytest.fixture(scope="session", autouse=True)
def served():
    needed = catalog.HOSTS_SINCE["tokenflex_composed"]
    if Version(transformers.__version__).release < Version(needed).release:
        pytest.skip(f"composed models are served from transformers {needed} on")


@pytest.fixture(scope="session")
def processor(composed):
    return composed.processor


@pytest.fixture(scope="session")
def flex(host):
    torch.manual_seed(0)
    return tokenflex.wrap(host)


@pytest.fixture(scope="session")
def batch(processor):
    """Make a batch from texts; every ``<image>`` gets the next image."""

    def build(*texts: str, side: str = "left", first: int = 0):
        count = sum(text.count("<image>") for text in texts)
        images = [image(first + i) for i in range(count)] or None
        return dict(processor(images=images, text=list(texts), padding=True, padding_side=side, return_tensors="pt"))

    return build
