"""Tiny hosts, saved as vLLM reads them, their requests, and vLLM engines on the CPU."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)
from transformers.models.clip import CLIPImageProcessor
from transformers.models.got_ocr2 import GotOcr2ImageProcessor
from transformers.models.qwen2_vl import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

import tokenflex
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor, tiny_tokenizer

SIZES = ((50, 40), (30, 70), (64, 64), (90, 20))
NEW = 12
RENAMED = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.": "",
}
"""How names of a LLaVA's tensors in memory begin -> how those of its original release do, which vLLM reads."""


@dataclass
class Served:
    """A host that an engine serves, and the FlexModel that makes its requests."""

    folder: Path
    flex: Any
    processor: Any
    template: str = "user : {} assistant :"
    place: str = "<image>"

    def image(self, index):
        width, height = SIZES[index % len(SIZES)]
        return Image.fromarray(np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8))

    def inputs(self, texts=None, first=0):
        texts = [f"{self.place} w{i} w{i + 1}" for i in range(4)] if texts is None else texts
        count = sum(text.count(self.place) for text in texts)
        images = [self.image(first + i) for i in range(count)]
        said = [self.template.format(text) for text in texts]
        return self.processor(images=images or None, text=said, return_tensors="pt", padding=True)

    def answers(self, inputs, **choice):
        found = self.flex.generate(
            **inputs, **choice, max_new_tokens=NEW, min_new_tokens=NEW, eos_token_id=None, do_sample=False
        )
        return found[:, inputs["input_ids"].shape[1] :].tolist()


def save_renamed(host, processor, folder):
    host.save_pretrained(folder)
    processor.save_pretrained(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    weights = {}
    for name, tensor in host.state_dict().items():
        begins = next(begins for begins in RENAMED if name.startswith(begins))
        weights[RENAMED[begins] + name.removeprefix(begins).removeprefix("vision_model.")] = tensor.contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


TEXT = {
    "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.1,
}  # fmt: skip
"""Heads of 32 numbers, the least that vLLM's attention takes on a CPU."""


@pytest.fixture(scope="session")
def llava_next(tmp_path_factory):
    text = LlamaConfig(vocab_size=len(tiny_tokenizer()), **TEXT)
    host, processor = tiny_llava_next(text_config=text), tiny_llava_next_processor()
    return joined(host, processor, tmp_path_factory.mktemp("llava_next"))


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=4,
        projection_dim=32,
    )  # fmt: skip
    text = LlamaConfig(vocab_size=len(tiny_tokenizer()), **TEXT)
    torch.manual_seed(0)
    host = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=4, tie_word_embeddings=False)
    ).eval()
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images,
        tiny_tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return joined(host, processor, tmp_path_factory.mktemp("llava"))


def joined(host, processor, folder):
    host.generation_config.pad_token_id = 0
    save_renamed(host, processor, folder)
    torch.manual_seed(1)
    return Served(folder, tokenflex.wrap(host, processor=processor).eval(), processor)


def words_of(first, **special):
    """A tokenizer of these words and a few more."""
    words = [*first, "user", "assistant", ":", *(f"w{i}" for i in range(40))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", **special,
    )  # fmt: skip


AN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN = ["<pad>", "<s>", "</s>", "<unk>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
IDS = {"vision_start_token_id": 4, "vision_end_token_id": 5, "image_token_id": 6, "video_token_id": 7}
KINDS = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor),
}
SEEN = {
    "qwen2_vl": {"embed_dim": 64, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 128},
    "qwen2_5_vl": {
        "hidden_size": 64, "depth": 2, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 128,
        "fullatt_block_indexes": [1], "window_size": 56,
    },
}  # fmt: skip


def qwen(kind, folder):
    config_type, host_type, processor_type = KINDS[kind]
    tokenizer = words_of(QWEN, additional_special_tokens=QWEN[4:])
    sizes = {
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 56 * 56,
        "max_pixels": 280 * 280,
    }
    processor = processor_type(
        Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes), chat_template=""
    )
    vision = {**SEEN[kind], "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
    text = {**TEXT, "vocab_size": len(tokenizer), "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6],
    }}  # fmt: skip
    torch.manual_seed(0)
    host = host_type(config_type(vision_config=vision, text_config=text, tie_word_embeddings=False, **IDS)).eval()
    host.generation_config.pad_token_id = 0
    host.save_pretrained(folder)
    processor.save_pretrained(folder)
    torch.manual_seed(1)
    adapter = tokenflex.hosts.get(kind)(host, positions="compact")
    flex = tokenflex.wrap(host, adapter=adapter, processor=processor).eval()
    return Served(folder, flex, processor, place=AN_IMAGE)


INTERN = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


@pytest.fixture(scope="session")
def internvl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("internvl")
    tokenizer = words_of(["<pad>", "<s>", "</s>", "<unk>", *INTERN.values()], extra_special_tokens=INTERN)
    size = {"height": 32, "width": 32}
    images = GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    videos = InternVLVideoProcessor(size=size)
    processor = InternVLProcessor(images, tokenizer, videos, image_seq_length=16, chat_template="")
    vision = InternVLVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=[32, 32],
        patch_size=[4, 4],
    )  # fmt: skip
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(vocab_size=len(tokenizer), **TEXT),
        image_token_id=processor.image_token_id,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    host = InternVLForConditionalGeneration(config).eval()
    host.generation_config.pad_token_id = 0
    host.save_pretrained(folder)
    processor.save_pretrained(folder)
    torch.manual_seed(1)
    flex = tokenflex.wrap(host, processor=processor).eval()
    return Served(folder, flex, processor, place="<IMG_CONTEXT>")


@pytest.fixture(scope="session")
def qwen2_vl(tmp_path_factory):
    return qwen("qwen2_vl", tmp_path_factory.mktemp("qwen2_vl"))


@pytest.fixture(scope="session")
def qwen2_5_vl(tmp_path_factory):
    return qwen("qwen2_5_vl", tmp_path_factory.mktemp("qwen2_5_vl"))


@pytest.fixture(scope="session")
def sampling():
    from vllm import SamplingParams

    return SamplingParams(max_tokens=NEW, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="session")
def start():
    """Starts an engine of a folder."""

    def begin(folder, **settings):
        from vllm import LLM

        return LLM(
            str(folder), enable_mm_embeds=True, dtype="float32", max_model_len=1024, enforce_eager=True,
            **{"limit_mm_per_prompt": {"image": 4}, **settings},
        )  # fmt: skip

    return begin


@pytest.fixture(scope="session")
def ask(sampling):
    """The new ids of every prompt, asked all at once."""

    def asked(engine, prompts):
        return [
            list(output.outputs[0].token_ids) for output in engine.generate(list(prompts), sampling, use_tqdm=False)
        ]

    return asked


def pytest_terminal_summary(terminalreporter):
    counts = {name: len(terminalreporter.stats.get(name, [])) for name in ("passed", "failed", "error", "skipped")}
    terminalreporter.write_line(
        f"{counts['passed']} of {sum(counts.values())} as they should be, {counts['skipped']} skipped"
    )
