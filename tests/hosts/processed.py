"""Images, transformers' own image processors at toy size, and the batches they make for tiny hosts."""

import numpy as np
import torch
import transformers
from PIL import Image

from tokenflex.testing.zoo.recipe import BOS, BREAK, END, IMAGE, START, WORD

ANY = {"shortest_edge": 1, "longest_edge": 10**7}
GEMMA = {"max_soft_tokens": 70}


def image(height, width, seed=0):
    """Slopes, a disc and a bar: smooth enough to survive resampling, with edges."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    turn = np.random.default_rng(seed).uniform(0, 3, 3)
    planes = [127 + 90 * np.sin(4 * x + t) * np.cos(3 * y + t) for t in turn]
    disc = (x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.03
    planes[0][disc] += 60
    planes[2][:, width // 2 : width // 2 + width // 8] -= 50
    return Image.fromarray(np.stack(planes, -1).clip(0, 255).astype(np.uint8))


def flat(layout):
    return (START, *(IMAGE,) * layout.placeholders, END)


def lines(layout):
    rows = [(*(IMAGE,) * layout.grid.cols, BREAK) for _ in range(layout.grid.rows)]
    ids = [token for row in rows for token in row]
    return (*ids[:-1], END)


def patches(kind, **settings):
    """Makes the processor of a tiny host whose images are cut into patches."""

    def make(config):
        vision = config.vision_config
        merge = getattr(vision, "spatial_merge_size", 2)
        return getattr(transformers, kind)(patch_size=vision.patch_size, merge_size=merge, size=dict(ANY), **settings)

    return make


def pixtral(config):
    cell = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    return transformers.PixtralImageProcessor(patch_size=cell, size={"longest_edge": 10**4})


def tiles(config):
    side = config.vision_config.image_size
    height, width = (side, side) if isinstance(side, int) else side
    size = {"height": height, "width": width}
    return transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=12)


PROCESSORS = {
    **dict.fromkeys(
        (
            "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen4_exp", "cosmos3_omni", "qwen3_vl_moe",
            "qwen3_5_moe", "exaone4_5", "lfm3_vl", "hyperclovax_vision_v2",
        ),
        patches("Qwen2VLImageProcessor"),
    ),
    "dots3_note": patches("Qwen2VLImageProcessor", temporal_patch_size=1),
    "cohere_compass": patches("CohereCompassImageProcessor"),
    "ernie4_5_vl_moe": patches("Ernie4_5_VLMoeImageProcessor"),
    "minimax_m3_vl": patches("MiniMaxM3VLImageProcessor"),
    "glm4v": patches("Glm4vImageProcessor"),
    "glm46v": patches("Glm46VImageProcessor"),
    "glmga": patches("GlmgaImageProcessor"),
    "cosmos3_edge": patches("Cosmos3EdgeImageProcessor"),
    "hunyuan_vl": patches("HunYuanVLImageProcessor"),
    "hy_v4_vl": patches("HYV4VLImageProcessor"),
    "paddleocr_vl": patches("PaddleOCRVLImageProcessor"),
    "video_llama_3": patches("VideoLlama3ImageProcessor"),
    "mistral3": pixtral,
    "mistral_large4": pixtral,
    "lighton_ocr": pixtral,
    "internvl": tiles,
    "qianfan_ocr": tiles,
    "got_ocr2": tiles,
}  # fmt: skip
WRITTEN = {"mistral3": lines, "mistral_large4": lines}


def batch(tiny, adapter, processor, images, **told):
    """A row of words and one image for each, padded left."""
    config, modality = adapter.host.config, adapter.architecture.modalities[0]
    seen = dict(processor([*images], return_tensors="pt", **told))
    seen = {name: seen[name] for name in ("pixel_values", *modality.inputs, modality.grids) if name in seen}
    cpu = {name: torch.as_tensor(value) for name, value in seen.items()}
    write = WRITTEN.get(tiny.model_type, flat)
    if tiny.model_type in ("internvl", "qianfan_ocr", "got_ocr2"):
        counts = processor([*images], return_tensors="pt", **told)["num_patches"]
        layouts = [modality.layouts(config, {}, torch.ones(1, 16 * int(n), dtype=torch.bool))[0] for n in counts]
    else:
        layouts = modality.layouts(config, cpu, torch.ones(1, 1, dtype=torch.bool))
    texts = [[BOS, WORD + 1, *write(layout), WORD + 2, WORD + 3 + i] for i, layout in enumerate(layouts)]
    length = max(map(len, texts))
    ids = torch.tensor([[0] * (length - len(text)) + text for text in texts])
    types = {tiny.token_types: (ids == IMAGE).long()} if tiny.token_types else {}
    types |= tiny.more_types(ids) if tiny.more_types else {}
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), **types, **seen}
