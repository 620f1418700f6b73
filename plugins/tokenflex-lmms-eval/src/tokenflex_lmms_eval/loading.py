"""Model and processor, as the settings say."""

from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor

from tokenflex.errors import ConfigError
from tokenflex.model import FlexModel, load_parts, wrap
from tokenflex_lmms_eval.settings import Settings


def load(settings: Settings, device: str) -> tuple[FlexModel, Any]:
    """Model, ready to answer, and its processor.

    Args:
        device: e.g. ``cuda:0``; ``auto``: spread over all devices.

    Raises:
        ConfigError: parts don't fit, the level isn't there, or there is no processor.
    """
    options: dict[str, Any] = {"dtype": settings.dtype, "device_map": device}
    if settings.attn_implementation is not None:
        options["attn_implementation"] = settings.attn_implementation
    loaded = AutoModelForImageTextToText.from_pretrained(settings.source, **options)
    processor = _processor(settings)
    flex = _with_parts(loaded, settings, processor).eval()
    count = flex.compressor.num_levels
    if settings.level is not None and not -count <= settings.level < count:
        raise ConfigError(
            f"level={settings.level} is out of range: there are 0 (fewest tokens) to {count - 1} (all; -1 for short)."
        )
    return flex, processor


def _with_parts(loaded: Any, settings: Settings, processor: Any) -> FlexModel:
    if settings.model is not None:
        if not isinstance(loaded, FlexModel):
            raise ConfigError(
                f"model={settings.model} is a plain {type(loaded).__name__} without parts; give it as host=, with "
                "parts=, router= or level=."
            )
        return loaded
    if isinstance(loaded, FlexModel):
        raise ConfigError(f"host={settings.host} has parts already; give it as model=.")
    if settings.parts is not None:
        return load_parts(settings.parts, host=loaded)
    return wrap(loaded, processor=processor, **settings.untrained)


def _processor(settings: Settings) -> Any:
    source = settings.processor or settings.source
    try:
        return AutoProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{source} holds no processor ({error}); save it there with processor.save_pretrained, or say where it is "
            "with processor=."
        ) from error
