"""Serving: requests for engines such as vLLM, a front that makes them without the language model, and a server."""

from tokenflex.model.exporting import ExportedImage, Request
from tokenflex.serving.converting import chat_parts, prompt_embeds, vllm_prompt
from tokenflex.serving.front import Front

__all__ = ["ExportedImage", "Front", "Request", "chat_parts", "prompt_embeds", "vllm_prompt"]
