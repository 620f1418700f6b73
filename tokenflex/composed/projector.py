"""From patch features to the language model's embeddings."""

import re

from torch import nn

from tokenflex.errors import ConfigError

CUSTOM = "custom"
DEEPEST = 16
"""Linear layers of a projector that is named; published ones have two."""


def build_projector(kind: str, width: int, dim: int) -> nn.Module:
    """A projector from its name: ``(images, tokens, width)`` to ``(images, tokens, dim)``.

    Args:
        kind: ``linear``; or ``mlp2x_gelu``, with 1 to `DEEPEST` linear layers in place of 2.

    Raises:
        ConfigError: the name is unknown, or stands for a module of the user's.
    """
    if kind == "linear":
        return nn.Linear(width, dim)
    if kind == CUSTOM:
        raise ConfigError(
            "this model was composed with a projector of your own, which a file can't hold. Load it with "
            "AutoModelForImageTextToText.from_pretrained(folder, multi_modal_projector=YourProjector())."
        )
    found = re.fullmatch(r"mlp([1-9]\d?)x_gelu", kind) if isinstance(kind, str) else None
    if found is None or int(found[1]) > DEEPEST:
        raise ConfigError(
            f"projector={kind!r:.200} isn't known; use 'linear', 'mlp2x_gelu' (1 to {DEEPEST} layers), or an nn.Module."
        )
    layers: list[nn.Module] = [nn.Linear(width, dim)]
    for _ in range(int(found[1]) - 1):
        layers += [nn.GELU(), nn.Linear(dim, dim)]
    return nn.Sequential(*layers)
