"""Configuration of a saved `FlexModel`: the host's own configuration and the description of the parts."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig


class FlexConfig(PreTrainedConfig):
    """What ``config.json`` of a host saved together with its parts holds.

    Attributes:
        host: the host's configuration.
        parts: the description `tokenflex.checkpoint.describe` gives; ``tokenflex.json`` holds the same.
    """

    model_type = "tokenflex"
    sub_configs: ClassVar = {"host": AutoConfig}  # pyright: ignore[reportAssignmentType]

    host: PreTrainedConfig | dict[str, Any] | None = None
    parts: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Make the host's configuration from its data; where there is none, LLaVA-NeXT's defaults."""
        if not isinstance(self.host, PreTrainedConfig):
            data = dict(self.host or {"model_type": "llava_next"})
            self.host = AutoConfig.for_model(data.pop("model_type"), **data)
        super().__post_init__(**kwargs)

    @property
    def keys_to_ignore_at_inference(self) -> list[str]:
        """Outputs that aren't predictions: the host's list and the decisions."""
        return [*getattr(self.host, "keys_to_ignore_at_inference", []), "decisions"]

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The host's text configuration."""
        host: Any = self.host
        return host.get_text_config(*args, **kwargs)
