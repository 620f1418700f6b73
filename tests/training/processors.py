"""The stock processor of every served architecture, made without a download, around one small tokenizer."""

import inspect
from functools import cache

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

NAMED = {
    "image_token": "<image>", "video_token": "<video>", "audio_token": "<audio>", "boi_token": "<boi>",
    "eoi_token": "<eoi>", "boa_token": "<boa>", "eoa_token": "<eoa>", "start_image_token": "<img>",
    "end_image_token": "</img>", "context_image_token": "<image>", "image_start_token": "<is>",
    "image_end_token": "<ie>", "video_start_token": "<vs>", "video_end_token": "<ve>", "vision_start_token": "<vis>",
    "vision_end_token": "<vie>", "vision_bos_token": "<vis>", "vision_eos_token": "<vie>", "audio_bos_token": "<as>",
    "audio_eos_token": "<ae>", "img_line_break_token": "<lb>", "image_boundary_token": "<bnd>",
    "slice_start_token": "<sl>", "slice_end_token": "</sl>", "image_id_start_token": "<iid>",
    "image_id_end_token": "</iid>", "image_break_token": "<lb>",
}  # fmt: skip
WRITTEN = (
    "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<|imgpad|>", "<imgpad>", "<|IMAGE_PAD|>", "]<]image[>[", "<|patch|>",
    "<im_patch>", "<|IMG_PATCH|>", "<|img|>", "<|endofimg|>", "<fake_token_around_image>", "<row_1_col_1>",
)  # fmt: skip
"""What processors write by themselves."""
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}\n{% for p in m.content %}{% if p.type == 'image' %}MARK{% else %}{{ p.text }}"
    "{% endif %}{% endfor %}{% if m.role == 'assistant' %}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
OWN = {"cohere_compass": {"image_token": "<|IMAGE_PAD|>"}}
"""Special tokens that an architecture calls otherwise than the rest."""
MARKS = {"hunyuan_vl": "<is><image><ie>"}
"""What templates write for an image, where it isn't the processor's token alone."""
CLASSES = {
    "cosmos3_omni": "Qwen3VLProcessor", "fast_vlm": "LlavaProcessor", "glm_ocr": "Glm46VProcessor",
    "glmga": "Glm46VProcessor", "qwen2_5_omni_thinker": "Qwen2_5OmniProcessor",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeProcessor",
}  # fmt: skip
"""Of architectures that transformers names no processor for."""
LIKE = {
    "glm4v_moe": "glm4v", "qwen3_vl_moe": "qwen3_vl", "cosmos3_omni": "qwen3_vl", "glm_ocr": "glm46v",
    "glmga": "glm46v", "fast_vlm": "llava", "qwen2_5_omni_thinker": "qwen2_vl", "qwen3_omni_moe_thinker": "qwen2_vl",
}  # fmt: skip
"""Whose images and videos they take, where transformers doesn't say."""
SQUARE = {"size": {"height": 28, "width": 28}}
SIZES = {
    "internvl": SQUARE, "qianfan_ocr": SQUARE, "aya_vision": {"size": {"height": 28, "width": 28}},
    "perception_lm": {"tile_size": 28, "max_num_tiles": 4}, "ovis2": SQUARE, "cohere2_vision": SQUARE,
    "idefics3": {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 28}},
    "smolvlm": {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 28}},
    "janus": SQUARE, "deepseek_vl": SQUARE, "got_ocr2": SQUARE,
}  # fmt: skip
"""Smaller images than those of the published ones, to be quick."""
SETTINGS = {
    "aya_vision": {"patch_size": 7, "img_size": 28, "downsample_factor": 2},
    "internvl": {"image_seq_length": 4}, "qianfan_ocr": {"image_seq_length": 4}, "ovis2": {"image_seq_length": 4},
    "idefics3": {"image_seq_len": 4}, "smolvlm": {"image_seq_len": 4}, "granite_docling": {"image_seq_len": 4},
    "gemma3": {"image_seq_length": 4}, "janus": {"num_image_tokens": 4}, "deepseek_vl": {"num_image_tokens": 4},
    "deepseek_vl_hybrid": {"num_image_tokens": 4}, "llava_onevision": {"num_image_tokens": 729},
    "perception_lm": {"patch_size": 14, "pooling_ratio": 2},
}  # fmt: skip


@cache
def _backend():
    """Bytes and some merges, across words and line breaks too."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys([*NAMED.values(), *WRITTEN])]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["user assistant what is this? a cat\n\n and where? red green\n1 2 3\n"] * 4, trainer)
    return made.to_str()


def tokenizer(name=None):
    """A byte-level tokenizer that knows the special tokens of all processors."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()), pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", extra_special_tokens=NAMED | OWN.get(name, {}),
    )  # fmt: skip


def _named(table, name, otherwise=None):
    found = table.get(name) or table.get(LIKE.get(name)) or otherwise
    found = found if isinstance(found, str | None) else found.get("torchvision") or found.get("pil")
    return found and getattr(transformers, found)


def processor(name):
    """The processor of an architecture, with a chat template.

    Raises:
        ImportError: it needs a package that isn't installed.
    """
    kind = getattr(transformers, PROCESSOR_MAPPING_NAMES.get(name) or CLASSES[name])
    taken = inspect.signature(kind.__init__).parameters
    parts = {
        "image_processor": lambda: _named(IMAGE_PROCESSOR_MAPPING_NAMES, name)(**SIZES.get(name, {})),
        "tokenizer": lambda: tokenizer(name),
        "video_processor": lambda: _named(VIDEO_PROCESSOR_MAPPING_NAMES, name, "Qwen2VLVideoProcessor")(),
        "feature_extractor": lambda: _named(FEATURE_EXTRACTOR_MAPPING_NAMES, name, "WhisperFeatureExtractor")(),
    }
    given = {part: make() for part, make in parts.items() if part in taken}
    if name == "paligemma":
        given["image_processor"].image_seq_length = 4
    settings = {"patch_size": 14, "vision_feature_select_strategy": "default"}
    settings = {key: value for key, value in settings.items() if key in taken} | SETTINGS.get(name, {})
    made = kind(**given, **settings)
    mark = MARKS.get(name) or getattr(made, "image_placeholder_token", None) or getattr(made, "image_token", "<image>")
    made.chat_template = TEMPLATE.replace("MARK", mark)
    return made
