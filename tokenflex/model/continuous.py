"""transformers' continuous batching: text goes to the host's own engine, images are refused until it serves them."""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from transformers import GenerationConfig, GenerationMixin

from tokenflex.errors import InputError, UnsupportedHostError
from tokenflex.hosts import stock
from tokenflex.model import door, request

REMEDY = (
    "transformers' continuous batching has no place for images yet and would answer without them. Call "
    "flex.generate(...), or serve images with 'tokenflex serve'."
)


class TextBatching(GenerationMixin):
    """The entry points of continuous batching, for a model that has a ``host`` and its ``adapter``."""

    host: Any
    adapter: Any
    generation_config: Any

    def init_continuous_batching(
        self,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **settings: Any,
    ) -> Any:
        """The host's manager of text requests, as transformers' own.

        Args:
            generation_config: None takes the model's own.
            args, settings: whatever else transformers takes.

        Returns:
            A manager whose ``add_request`` and ``add_requests`` raise an `InputError` for prompts with placeholders of
            images.
        """
        config = self.generation_config if generation_config is None else generation_config
        own = copy.deepcopy(config)  # transformers writes into it
        manager = stock.base_of(self.host).init_continuous_batching(own, *args, **settings)
        return TextManager(manager, self.adapter.placeholder_ids)

    def destroy_cached_continuous_batching_manager(self) -> None:
        """Give back what a manager that was kept for the next session holds."""
        stock.base_of(self.host).destroy_cached_continuous_batching_manager()

    def generate_batch(self, inputs: Sequence[Sequence[int]], *args: Any, **options: Any) -> Any:
        """Answers to prompts of text, by the host's own continuous batching.

        Args:
            inputs: token ids of every prompt, without padding.
            args, options: whatever transformers takes.

        Returns:
            transformers' outputs by request, in the order of the prompts.

        Raises:
            InputError: there are images, or placeholders of images; or a level or budget, which say how images
                are shortened.
            UnsupportedHostError: transformers answered none of the prompts, as with hosts whose attention it can't
                page.
        """
        request.check(self, options)
        shown = [*door.visual_inputs(options, self.adapter), *(name for name in request.OWN if name in options)]
        if shown:
            raise InputError(f"generate_batch got {', '.join(shown)}: {REMEDY}")
        for ids in inputs:
            _require_text(ids, self.adapter.placeholder_ids)
        found: Any = super().generate_batch(inputs, *args, **options)  # pyright: ignore[reportArgumentType]
        errors = [one.error for one in found.values() if one.error is not None]
        if len(inputs) > 0 and len(errors) == len(found):  # transformers only logs it
            raise UnsupportedHostError(
                f"transformers' continuous batching answered none of {len(inputs)} prompts with "
                f"{self.adapter.model_type}: {errors[0] if errors else 'nothing came back'}. Call flex.generate(...)."
            )
        return found

    def _is_paged(self, batch: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        """Whether ``generate`` is asked for continuous batching, which on text is the host's own business.

        Raises:
            InputError: it is, and the batch has images.
        """
        if options.get("cache_implementation") != "paged":
            return False
        shown = door.visual_inputs(batch, self.adapter)
        if shown:
            raise InputError(f"cache_implementation='paged' came with {', '.join(shown)}: {REMEDY}")
        return True


class TextManager:
    """A manager of transformers' continuous batching that takes prompts of text only.

    Args:
        manager: answers everything but the requests' prompts.
        placeholder_ids: tokens that stand for images.
    """

    def __init__(self, manager: Any, placeholder_ids: Collection[int]) -> None:
        self.manager, self.placeholder_ids = manager, placeholder_ids

    def add_request(self, input_ids: Sequence[int], *args: Any, **settings: Any) -> str | None:
        """As transformers' own.

        Raises:
            InputError: the prompt has placeholders of images.
        """
        _require_text(input_ids, self.placeholder_ids)
        return self.manager.add_request(input_ids, *args, **settings)

    def add_requests(self, inputs: Sequence[Sequence[int]], *args: Any, **settings: Any) -> list[str]:
        """As transformers' own.

        Raises:
            InputError: a prompt has placeholders of images; none is added.
        """
        for ids in inputs:
            _require_text(ids, self.placeholder_ids)
        return self.manager.add_requests(inputs, *args, **settings)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.manager)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "manager"), name)


def _require_text(ids: Sequence[int], placeholders: Collection[int]) -> None:
    found = {int(one) for one in ids} & set(placeholders)
    if found:
        raise InputError(f"the prompt has placeholders of images (token {', '.join(map(str, found))}): {REMEDY}")
