"""From a request's words to what a model is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tokenflex.contracts import ComponentConfig
from tokenflex.contracts.levels import spread
from tokenflex.errors import ConfigError, InputError
from tokenflex.model import Fade, request
from tokenflex.serving.server.images import Images
from tokenflex.serving.server.limits import Limits
from tokenflex.serving.server.protocol import Chat, ImageItem
from tokenflex.serving.server.refusals import RefusedError

ROLES = {"developer": "system"}


@dataclass(frozen=True)
class Sampling:
    """How words are chosen; what is None is left to the model's own settings."""

    new_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Ask:
    """What a model is asked.

    Attributes:
        messages: in the form of chat templates: contents are lists of ``text`` and ``image`` items.
        images: in the order of their items.
        levels: of every image; None lets the router decide.
        budget: that the router keeps to; settings of a policy.
        stop: strings that end the answer, and aren't part of it.
        stream: whether words are wanted as they come.
    """

    messages: tuple[dict[str, Any], ...]
    images: tuple[Image.Image, ...]
    levels: tuple[int | None, ...]
    budget: ComponentConfig | None
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stream: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for requests that can be answered in one batch."""
        kind = {type(level) for level in self.levels}
        alone = id(self) if self.sampling.seed is not None else None
        return frozenset(kind), self.budget, self.sampling, alone


async def read_ask(chat: Chat, images: Images, limits: Limits, num_levels: int, placeholders: Sequence[str]) -> Ask:
    """What a checked request asks, with its images.

    Args:
        num_levels: that the model has.
        placeholders: words that stand for images, which a request may not write itself.

    Raises:
        RefusedError: a value isn't one for this model, or an image can't be had.
    """
    urls, details, messages = list[str](), list[str](), list[dict[str, Any]]()
    for message in chat.messages:
        content: list[dict[str, Any]] = []
        for item in message.content:
            if isinstance(item, ImageItem):
                if message.role != "user":
                    raise RefusedError(f"A message of role {message.role} has an image; only those of users may.")
                urls.append(item.image_url.url)
                details.append(item.image_url.detail)
                content.append({"type": "image"})
                continue
            for mark in placeholders:
                if mark in item.text:
                    raise RefusedError(
                        f"A text has {mark!r}, which stands for an image; send images as items of the type image_url.",
                        "placeholder_in_text",
                    )
            content.append({"type": "text", "text": item.text})
        messages.append({"role": ROLES.get(message.role, message.role), "content": content})
    characters = sum(len(item["text"]) for message in messages for item in message["content"] if "text" in item)
    if characters > limits.characters:
        raise RefusedError(
            f"The texts have {characters} characters; at most {limits.characters} are taken.", "too_large", 413
        )
    levels, budget = _choice(chat, details, num_levels, limits.conversation)
    sampling = _sampling(chat, limits)
    read_images = await images.read(urls)
    return Ask(tuple(messages), read_images, levels, budget, sampling, tuple(chat.stop), chat.stream)


def _choice(
    chat: Chat, details: Sequence[str], num_levels: int, conversation: int | None
) -> tuple[tuple[int | None, ...], ComponentConfig | None]:
    """Levels of the images, and the router's budget.

    Args:
        conversation: tokens that all images share where the request asks for nothing.
    """
    level, asked = chat.tokenflex.level, chat.tokenflex
    if asked.budget is not None and asked.conversation is not None:
        raise RefusedError("tokenflex.budget and tokenflex.conversation are two budgets; give one of them.")
    try:
        if asked.conversation is not None:
            budget: ComponentConfig | None = Fade.from_dict(asked.conversation)
        elif asked.budget is not None:
            budget = request.read_budget(asked.budget)
        else:
            budget = None
        read, _ = request.read(level, budget, num_levels)
        forced = None if read is None else spread(read, len(details)) if details or not isinstance(read, int) else []
    except (InputError, ConfigError) as error:
        raise RefusedError(f"tokenflex: {error}", param="tokenflex") from error
    if budget is None and conversation is not None:
        budget = Fade(tokens=conversation)
    named = [{"low": 0, "high": num_levels - 1}.get(detail) for detail in details]
    if forced is None:
        return tuple(named), budget if None in named else None
    if any(one is not None for one in named):
        raise RefusedError("tokenflex.level and image_url.detail both choose a level; give one of the two.")
    return tuple(forced), None


def _sampling(chat: Chat, limits: Limits) -> Sampling:
    if chat.max_tokens and chat.max_completion_tokens and chat.max_tokens != chat.max_completion_tokens:
        raise RefusedError("max_tokens and max_completion_tokens differ; give one of them.")
    asked = chat.max_completion_tokens or chat.max_tokens or limits.default_new_tokens
    if asked > limits.new_tokens:
        raise RefusedError(
            f"max_completion_tokens={asked}: this server writes at most {limits.new_tokens}.", param="max_tokens"
        )
    temperature, top_p = chat.temperature, chat.top_p
    if top_p is not None and temperature is None and top_p < 1:
        temperature = 1.0
    if temperature is None:
        return Sampling(asked, seed=chat.seed)
    if temperature == 0:
        return Sampling(asked, 0.0)
    return Sampling(asked, temperature, 1.0 if top_p is None else top_p, chat.seed)
