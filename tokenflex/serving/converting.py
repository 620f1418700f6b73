"""Requests in the forms that engines take: vLLM's offline prompts, items of OpenAI chats, plain prompt embeddings."""

import base64
import io
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenflex.errors import InputError
from tokenflex.model.exporting import ExportedImage, Request

BRACKETED = ("internvl",)
"""Hosts whose model in vLLM writes the token before an image and the one after it by itself."""
BY_ROWS = ("llava", "llava_next", *BRACKETED)
"""Hosts whose model in vLLM takes every image's embeddings as they are."""
BY_GRID = ("qwen2_vl", "qwen2_5_vl")
"""Hosts whose model in vLLM takes them with the grid they form."""


class Embedding(Protocol):
    """What embeds the prompt's words: a `FlexModel` or a `Front`."""

    def get_input_embeddings(self) -> nn.Module:
        """The language model's table of word embeddings."""
        ...


def vllm_prompt(request: Request) -> dict[str, Any]:
    """What ``vllm.LLM.generate`` takes with ``enable_mm_embeds=True``.

    Returns:
        ``prompt_token_ids`` with one placeholder per image, and for rows with images ``multi_modal_data`` and
        ``multi_modal_uuids``, by which vLLM caches them.

    Raises:
        InputError: vLLM's model of this host doesn't take embeddings in a way that has been compared.
    """
    prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_ids)}
    if not request.images:
        return prompt
    if _by_grid(request):
        table = torch.tensor([image.grid for image in request.images])
        data: Any = {"image_embeds": torch.cat([i.embeddings for i in request.images]), "image_grid_thw": table}
    else:
        data = [image.embeddings for image in request.images]
    if request.model_type in BRACKETED:
        prompt["prompt_token_ids"] = _unbracketed(request)
    return prompt | {
        "multi_modal_data": {"image": data},
        "multi_modal_uuids": {"image": [image.key for image in request.images]},
    }


def chat_items(request: Request) -> list[dict[str, Any]]:
    """Content items of a chat message to vLLM's server (``--enable-mm-embeds``), one per image in the text's order.

    They take the places of the message's images; the server's own chat template writes the prompt.

    Raises:
        InputError: as for `vllm_prompt`.
    """
    grid = _by_grid(request) if request.images else False
    return [
        {"type": "image_embeds", "image_embeds": (_with_grid if grid else _alone)(image), "uuid": image.key}
        for image in request.images
    ]


def prompt_embeds(model: Embedding, request: Request) -> Float[Tensor, "length dim"]:
    """The whole prompt as embeddings, on the CPU, for engines that take those in place of ids.

    Args:
        model: the `FlexModel` or `Front` that made the request.

    Raises:
        InputError: the language model would read them otherwise than the host reads its own prompt.
    """
    if request.counted is not None:
        raise InputError(
            f"{request.model_type}'s prompt can't be handed on as embeddings alone: {request.counted}. Use vllm_prompt "
            "or chat_items where the engine serves this host, or flex.generate."
        )
    embed: Any = model.get_input_embeddings()
    ids = torch.tensor(request.compact_ids)
    text = ids.masked_fill(request.visual, 0).to(embed.weight.device)
    with torch.no_grad():
        found = embed(text).cpu()
    if request.images:
        rows = torch.cat([image.embeddings for image in request.images])
        found[request.visual] = rows.to(found.dtype)
    return found


def _unbracketed(request: Request) -> list[int]:
    """The prompt's ids without the neighbours of every placeholder."""
    placeholder = request.compact_ids[int(request.visual.nonzero()[0])]
    ids = request.prompt_ids
    places = {i for i, token in enumerate(ids) if token == placeholder}
    return [token for i, token in enumerate(ids) if i in places or not {i - 1, i + 1} & places]


def _by_grid(request: Request) -> bool:
    """Whether grids go along.

    Raises:
        InputError: the host isn't one of those that were compared.
    """
    kind = request.model_type
    if kind not in (*BY_ROWS, *BY_GRID):
        raise InputError(
            f"{kind}: it hasn't been shown that vLLM's model of this host reads image embeddings as the host does; "
            f"shown are {', '.join((*BY_ROWS, *BY_GRID))}. Use prompt_embeds where the host's positions are plain, or "
            "flex.generate."
        )
    return kind in BY_GRID


def _with_grid(image: ExportedImage) -> dict[str, str]:
    grid = torch.tensor(image.grid)
    return {"image_embeds": _base64(image.embeddings), "image_grid_thw": _base64(grid)}


def _alone(image: ExportedImage) -> str:
    return _base64(image.embeddings)


def _base64(tensor: Tensor) -> str:
    """A tensor as vLLM's server reads it: a file of ``torch.save``, in base64."""
    written = io.BytesIO()
    torch.save(tensor.contiguous().clone(), written)
    return base64.b64encode(written.getvalue()).decode("ascii")
