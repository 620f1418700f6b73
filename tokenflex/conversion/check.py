"""Do a converted folder and the released tensors compute the same?"""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

from tokenflex.conversion import layout, processor
from tokenflex.conversion.convert import describe_released, fetch, host_tensors, part_tensors, tower_file
from tokenflex.conversion.shards import Shards
from tokenflex.hosts.llava_next import LlavaNextAdapter
from tokenflex.model import FlexModel, load_parts
from tokenflex.model.config import FlexConfig
from tokenflex.ops.packing import anyres_count

TEXT_TOKENS = 12


def largest_difference(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> float:
    """Largest absolute difference of logits at every level, and of the router's scores.

    The same image and prompt go through the converted folder, loaded the way users load it, and through a model
    filled straight from the released tensors. They are in memory one after the other.
    """
    folder = fetch(source)
    inputs = example(folder)
    host = AutoModelForImageTextToText.from_pretrained(out, dtype="auto")
    first = outputs(load_parts(out, host=host).eval(), inputs)
    del host
    second = outputs(filled(folder).eval(), inputs)
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def filled(folder: Path) -> FlexModel:
    """A model whose tensors are assigned from the released ones, without a detour through files."""
    tensors, model = Shards(folder), describe_released(folder)
    state = {}
    for file in tensors.files:
        for name, tensor in host_tensors(tensors, file):
            released = layout.released_name(name, is_part=False)
            state[released] = tensor
    names = {layout.released_name(name, is_part=False): name for name in model.host.state_dict()}
    dtype = next(iter(state.values())).dtype
    host = AutoModelForImageTextToText.from_config(model.host.config, dtype=dtype)
    host.load_state_dict({names[name]: tensor for name, tensor in state.items()})
    parts = model.parts.to_empty(device="cpu").float()
    parts.load_state_dict(dict(part_tensors(tensors)))
    adapter = LlavaNextAdapter(host, **model.adapter.options)
    return FlexModel(FlexConfig(host=copy.deepcopy(host.config)), host=host, compressor=parts, adapter=adapter)


def example(folder: Path) -> dict[str, Any]:
    """An image of noise, wider than high, and a prompt of twelve random tokens."""
    model = describe_released(folder)
    tower: Any = model.tower
    side, vocabulary = tower.image_size, model.config["vocab_size"]
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (side, 2 * side, 3), dtype=np.uint8))
    images = processor.image_processor(model.config, tower, tower_file(folder, "preprocessor_config.json"))
    seen = images(image, return_tensors="pt")
    height, width = seen["image_sizes"][0].tolist()
    tiles, grid = model.adapter.tiles((height, width)), model.adapter.grid
    placeholders = anyres_count(tiles, grid, grid, (height, width), "geometric")
    text = rng.integers(min(3, vocabulary - 1), vocabulary, TEXT_TOKENS).tolist()
    ids = [*text[:2], *[vocabulary] * placeholders, *text[2:]]
    return {"input_ids": torch.tensor([ids]), "pixel_values": seen["pixel_values"], "image_sizes": seen["image_sizes"]}


@torch.no_grad()
def outputs(flex: FlexModel, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Logits at every level, and the router's scores."""
    batch = {**inputs, "pixel_values": inputs["pixel_values"].to(flex.host.dtype)}
    found = {str(level): flex(**batch, level=level).logits.float() for level in range(flex.compressor.num_levels)}
    (decision,) = flex.decide(**batch)
    return found if decision.scores is None else found | {"scores": decision.scores}
