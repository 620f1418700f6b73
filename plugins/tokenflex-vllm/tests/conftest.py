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
from transformers import LlamaConfig

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

    def picture(self, index):
        width, height = SIZES[index % len(SIZES)]
        return Image.fromarray(np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8))

    def inputs(self, texts=None, first=0):
        texts = [f"{self.place} w{i} w{i + 1}" for i in range(4)] if texts is None else texts
        count = sum(text.count(self.place) for text in texts)
        pictures = [self.picture(first + i) for i in range(count)]
        said = [self.template.format(text) for text in texts]
        return self.processor(images=pictures or None, text=said, return_tensors="pt", padding=True)

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


@pytest.fixture(scope="session")
def llava_next(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava_next")
    text = LlamaConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=128, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, initializer_range=0.1,
    )  # fmt: skip
    host, processor = tiny_llava_next(text_config=text), tiny_llava_next_processor()
    save_renamed(host, processor, folder)
    torch.manual_seed(1)
    return Served(folder, tokenflex.wrap(host, processor=processor).eval(), processor)


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
            limit_mm_per_prompt={"image": 4}, **settings,
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
