"""What the methods read of an image: attention, and the vectors whose similarity counts."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts import Need, VisualTokens
from tokenflex.errors import ConfigError, InputError

METRICS = ("features", "keys")


def check_choice(setting: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that isn't among ``choices``.

    Raises:
        ConfigError: with the choices.
    """
    if value not in choices:
        raise ConfigError(f"{setting}={value!r} is none of {', '.join(map(repr, choices))}; use one of them.")


def check_share(setting: str, value: float) -> None:
    """Refuse numbers outside 0 .. 1.

    Raises:
        ConfigError: with the rule.
    """
    if not 0 <= value <= 1:
        raise ConfigError(f"{setting}={value!r} is no share; use a number from 0 to 1.")


def check_count(setting: str, value: int) -> None:
    """Refuse anything but whole numbers above 0.

    Raises:
        ConfigError: with the rule.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{setting}={value!r} is no count; use an integer of 1 or more.")


def metric_needs(metric: str, *more: Need) -> frozenset[Need]:
    """What a part with this ``metric`` has to declare, and what it needs ``more``."""
    return frozenset(("keys", *more)) if metric == "keys" else frozenset(more)


def metric_vectors(tokens: VisualTokens, metric: str) -> Float[Tensor, "*batch views tokens width"]:
    """The tokens' features or attention keys in float32, without gradients.

    Raises:
        InputError: keys are wanted and the image has none.
    """
    if metric == "features":
        return tokens.features.detach().float()
    if tokens.keys is None:
        raise InputError(
            "metric='keys' compares attention keys, and this image has none. Use metric='features', "
            "or a host whose vision tower can be read."
        )
    return tokens.keys.detach().float()


def attention_of(attention: Float[Tensor, "*batch views tokens"] | None, who: str) -> Float[Tensor, "..."]:
    """The attention in float32, without gradients.

    Args:
        who: the part that reads it, for the message.

    Raises:
        InputError: there is none.
    """
    if attention is None:
        raise InputError(
            f"{who} reads the vision tower's attention, and this image has none. "
            "Use a host whose vision tower can be read, or a part that needs features only."
        )
    return attention.detach().float()


def strongest(attention: Float[Tensor, "*batch views tokens"], count: int) -> Tensor:
    """``(*batch, views, count)``, indices of the most attended tokens, best first; ties: lower index first."""
    return attention.argsort(dim=-1, descending=True, stable=True)[..., :count]


def rows_at(values: Float[Tensor, "*batch tokens width"], places: Tensor) -> Tensor:
    """``(*batch, kept, width)``, the rows of ``values`` at ``places`` ``(*batch, kept)``."""
    return values.gather(-2, places[..., None].expand(*places.shape, values.shape[-1]))


def numbering(places: Tensor, tokens: int) -> Tensor:
    """``(*batch, tokens)``, the position of every token in ``places`` ``(*batch, kept)``; -1 where it isn't there."""
    numbers = torch.arange(places.shape[-1], device=places.device).expand(places.shape)
    return places.new_full((*places.shape[:-1], tokens), -1).scatter(-1, places, numbers)
