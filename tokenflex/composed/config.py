"""Configuration of a composed model: plain data, so that a saved one loads without the network."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from tokenflex.errors import ConfigError
from tokenflex.loadable import configuration, without_code

LARGEST = 2**15
"""Pixels, or visual tokens, of one side of an image."""


class ComposedConfig(PreTrainedConfig):
    """What ``config.json`` of a composed model holds.

    Attributes:
        text_config: the language model's own configuration.
        vision: the encoder as data: ``source`` (``timm``, ``open_clip``, ``transformers``), ``layer``, and what that
            source needs to build it again (see `tokenflex.composed.vision`).
        image_size: (height, width) of an image in pixels.
        grid: (rows, columns) of an image's visual tokens.
        vision_width: channels of a patch before the projector.
        projector: ``linear``, ``mlp2x_gelu`` (any number of layers), or ``custom`` for a module of your own.
        image_token_id: id of the placeholder, one per visual token.
        pad_token_id: id of padding.
    """

    model_type = "tokenflex_composed"
    sub_configs: ClassVar = {"text_config": AutoConfig}  # pyright: ignore[reportAssignmentType]

    text_config: PreTrainedConfig | dict[str, Any] | None = None
    vision: dict[str, Any] | None = None
    image_size: list[int] | tuple[int, int] = (224, 224)
    grid: list[int] | tuple[int, int] = (14, 14)
    vision_width: int = 768
    projector: str = "mlp2x_gelu"
    image_token_id: int = 0
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Make the language model's configuration from its data; where there is none, Llama's defaults."""
        if not isinstance(self.text_config, PreTrainedConfig):
            data = without_code(self.text_config or {"model_type": "llama"})
            self.text_config = configuration(data, "text_config")
        self._require_own()
        super().__post_init__(**kwargs)

    def _require_own(self) -> None:
        """Refuse what this class's own entries can't be.

        Raises:
            ConfigError: names entry and value.
        """
        for name in ("image_size", "grid"):
            pair = getattr(self, name)
            sides = pair if isinstance(pair, list | tuple) and len(pair) == 2 else [None]
            if not all(type(side) is int and 1 <= side <= LARGEST for side in sides):
                raise ConfigError(f"{name}={pair!r:.200}; expected (rows, columns), each from 1 to {LARGEST}.")
        for name, least in (("vision_width", 1), ("image_token_id", 0), ("pad_token_id", 0)):
            value = getattr(self, name)
            if (type(value) is not int or value < least) and (name != "pad_token_id" or value is not None):
                raise ConfigError(f"{name}={value!r:.200}; expected an integer, {least} or more.")
        if not isinstance(self.projector, str):
            raise ConfigError(f"projector={self.projector!r:.200}; expected a name, such as 'mlp2x_gelu'.")
        if not isinstance(self.vision, dict | None):
            raise ConfigError(f"vision={self.vision!r:.200}; expected an object that describes the encoder.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a configuration's dictionary; keys of files that could name code are passed over."""
        return super().from_dict(without_code(config_dict), **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: saved folders name this package, and the file of this class isn't copied into them."""
