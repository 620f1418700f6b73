"""What vLLM calls in every one of its processes, before it loads a model."""

import importlib.metadata
import logging

logger = logging.getLogger("vllm.tokenflex")
SHOWN = ((0, 32), (0, 33))
"""From the first version that was tried up to the next one that wasn't."""
MODELS = {
    "InternVLForConditionalGeneration": "tokenflex_vllm.models:InternVL",
    "LlavaForConditionalGeneration": "tokenflex_vllm.models:Llava",
    "LlavaNextForConditionalGeneration": "tokenflex_vllm.models:LlavaNext",
}
"""Architectures whose model in vLLM refuses images of different lengths in one batch -> the class that takes them."""


def register() -> None:
    """Make vLLM load these models for their architectures; nothing for a version that wasn't tried, which it logs.

    Doing so again changes nothing. An engine that serves another model goes on as before.
    """
    version = importlib.metadata.version("vllm")
    found = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if not SHOWN[0] <= found < SHOWN[1]:
        logger.error(
            "tokenflex-vllm was tried with vLLM 0.32 and leaves vLLM %s as it is: LLaVA, LLaVA-NeXT and InternVL will "
            "refuse images of different lengths in one batch. Install vllm>=0.32,<0.33 or a tokenflex-vllm for it.",
            version,
        )
        return
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]

    for architecture, name in MODELS.items():
        ModelRegistry.register_model(architecture, name)
