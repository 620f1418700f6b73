"""OpenAI's chat completions: what a request may say, and how answers are written."""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import from_json

from tokenflex.serving.server.refusals import RefusedError

NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logprobs": False,
    "store": False,
    "logit_bias": {},
    "metadata": {},
    "tools": [],
    "functions": [],
    "modalities": ["text"],
    "response_format": {"type": "text"},
}
"""Options of OpenAI's that aren't supported, at the values at which they ask for nothing."""
STOPS = 4


class Strict(BaseModel):
    """Neither converts values nor takes names that it doesn't know."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ImageURL(Strict):
    """Where an image is, and how fine it is to be seen."""

    url: str
    detail: Literal["low", "auto", "high"] = "auto"


class TextItem(Strict):
    """A content item that is a text."""

    type: Literal["text"]
    text: str


class ImageItem(Strict):
    """A content item that is an image."""

    type: Literal["image_url"]
    image_url: ImageURL


class Message(Strict):
    """One turn; words alone are one content item."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[TextItem | ImageItem, Field(discriminator="type")]] = Field(min_length=1)

    @field_validator("content", mode="before")
    @classmethod
    def _items(cls, value: Any) -> Any:
        return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Choice(Strict):
    """The key ``tokenflex``; its values are read by the model."""

    level: Any = None
    budget: Any = None
    conversation: Any = None


class StreamOptions(Strict):
    """Whether the last chunk has the usage."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Chat(Strict):
    """A request for an answer; its fields are OpenAI's."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Annotated[str, Field(min_length=1)]] = Field([], max_length=STOPS)
    user: str | None = None
    tokenflex: Choice = Choice()

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


def read_chat(body: bytes) -> Chat:
    """A request.

    Raises:
        RefusedError: it is no JSON, has an option that isn't supported, or a value that isn't one.
    """
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(f"The body is no JSON: {error}.", "invalid_json") from error
    if not isinstance(fields, dict):
        raise RefusedError("The body is no JSON object; expected one with model and messages.", "invalid_json")
    fields = {name: value for name, value in fields.items() if not _says_nothing(name, value)}
    messages = fields.get("messages")
    if isinstance(messages, list):
        fields["messages"] = [_without_nothing(message) for message in messages]
    for name in fields:
        if name not in Chat.model_fields:
            neutral = f" or give {json.dumps(NEUTRAL[name])}" if name in NEUTRAL else ""
            raise RefusedError(
                f"{name:.100} isn't supported by this server; leave it out{neutral}. Supported: "
                f"{', '.join(Chat.model_fields)}.",
                "unsupported_parameter",
                param=name[:100],
            )
    try:
        return Chat.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(key) for key in first["loc"])[:200]
        raise RefusedError(f"{where}: {first['msg']:.500}.", "invalid_value", param=where) from error


def _says_nothing(name: str, value: Any) -> bool:
    if value is None or name not in NEUTRAL:
        return value is None
    neutral = NEUTRAL[name]
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _without_nothing(message: Any) -> Any:
    """Answers that clients hand back have names without a value."""
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if value is not None and (name, value) != ("tool_calls", [])}


@dataclass(frozen=True)
class Usage:
    """What an answer took.

    Attributes:
        prompt: tokens that the language model read, after images were shortened.
        completion: tokens that it wrote.
        visual, visual_full: visual tokens of the prompt, and what they would have been at the finest level.
        levels: of every image.
    """

    prompt: int
    completion: int
    visual: int = 0
    visual_full: int = 0
    levels: tuple[int, ...] = ()

    def written(self) -> dict[str, int]:
        """The numbers of tokens, as they are sent."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "visual_tokens": self.visual,
            "visual_tokens_full": self.visual_full,
        }


@dataclass(frozen=True)
class Writer:
    """Writes one answer, whole or in chunks.

    Args:
        model: as clients call it.
    """

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, reason: str, usage: Usage) -> dict[str, Any]:
        """The whole answer as one JSON-ready object."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion"), "choices": [choice], **_told(usage)}

    def chunk(self, delta: Mapping[str, str], reason: str | None = None) -> str:
        """A piece of it as a server-sent event."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def usage(self, usage: Usage) -> str:
        """The last event but one, for who asked."""
        return event({**self._head("chat.completion.chunk"), "choices": [], **_told(usage)})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(data: Mapping[str, Any]) -> str:
    """Data as the text of one server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _told(usage: Usage) -> dict[str, Any]:
    return {"usage": usage.written(), "tokenflex": {"levels": list(usage.levels)}}
