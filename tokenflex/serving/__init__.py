"""Serving: requests for engines such as vLLM, a front that makes them without the language model, and a server."""

from tokenflex.model.exporting import ExportedImage, Request
from tokenflex.renamed import attributes
from tokenflex.serving.converting import chat_items, prompt_embeds, vllm_prompt
from tokenflex.serving.front import Front

__all__ = ["ExportedImage", "Front", "Request", "chat_items", "prompt_embeds", "vllm_prompt"]

__getattr__ = attributes(__name__, {"chat_parts": "tokenflex.serving:chat_items"})
