"""Conversations as a host's processor writes them down and takes them in."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from tokenflex.errors import DataError


def written(processor: Any, messages: Sequence[Mapping[str, Any]], name: str, *, reply: bool = False) -> str:
    """A conversation's text by the processor's chat template.

    Args:
        messages: at least one, with ``role`` and ``content``.
        name: how errors call the conversation.
        reply: end with the opening of the assistant's next turn.

    Raises:
        DataError: the template refuses the conversation, as some do where roles don't alternate.
    """
    try:
        return processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=reply)
    except TemplateError as error:
        raise refused(name, error) from error


def refused(name: str, error: TemplateError) -> DataError:
    """The error for a conversation that the chat template doesn't write."""
    return DataError(f"{name}: the chat template refuses the conversation ({error}). Mend or remove it.")


def prompt_tokens(processor: Any, text: str, sizes: Sequence[tuple[int, int]] = ()) -> int:
    """About how many tokens a prompt will have, told from its text and the sizes of its images, without their pixels.

    For putting prompts of similar length together. Images count where the processor can tell, as those of transformers
    do that serve engines such as vLLM.

    Args:
        sizes: (height, width) in pixels.
    """
    count_tokens = getattr(processor, "_get_num_multimodal_tokens", None)
    visual: Sequence[int] = ()
    if count_tokens is not None and sizes:
        try:
            visual = count_tokens(image_sizes=[list(size) for size in sizes]).num_image_tokens or ()
        except Exception:  # whatever a processor raises that can't tell after all
            visual = ()
    # Padding as batches are padded: a tokenizer is saved with the padding of its last call.
    tokens = processor.tokenizer([text], add_special_tokens=False, padding=True, padding_side="left")["input_ids"]
    return len(tokens[0]) + sum(visual)


def special_tokens(processor: Any, texts: Sequence[str]) -> dict[str, bool]:
    """Options with which the processor gives ``texts`` the ids of ``apply_chat_template(..., tokenize=True)``.

    Where the template has written the beginning of sequence, the tokenizer must not add another one.

    Raises:
        DataError: the template writes it in some of the texts only, so that they can't share a batch.
    """
    bos = processor.tokenizer.bos_token
    begun = {bool(bos) and text.startswith(bos) for text in texts}
    if len(begun) > 1:
        raise DataError(
            f"the chat template begins some conversations of a batch with {bos!r} and others without; use a template "
            "that does the one or the other."
        )
    return {"add_special_tokens": False} if begun == {True} else {}
