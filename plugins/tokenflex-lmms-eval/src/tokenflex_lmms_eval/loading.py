"""Model and processor, as the settings say."""

from typing import Any

from tokenflex.errors import ConfigError
from tokenflex.model import FlexModel
from tokenflex.model import sources as loader
from tokenflex_lmms_eval.settings import Settings


def load(settings: Settings, device: str) -> tuple[FlexModel, Any]:
    """Model, ready to answer, and its processor.

    Args:
        device: e.g. ``cuda:0``; ``auto``: spread over all devices.

    Raises:
        ConfigError: parts don't fit, the level isn't there, or there is no processor.
    """
    flex, processor = loader.load(
        settings.model,
        host=settings.host,
        parts=settings.parts,
        untrained=settings.untrained,
        processor=settings.processor,
        dtype=settings.dtype,
        device=device,
        attn_implementation=settings.attn_implementation,
    )
    count = flex.compressor.num_levels
    if settings.level is not None and not -count <= settings.level < count:
        raise ConfigError(
            f"level={settings.level} is out of range: there are 0 (fewest tokens) to {count - 1} (all; -1 for short)."
        )
    return flex, processor
