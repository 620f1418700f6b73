"""Configuration of a `FlexModel`: the host's own configuration and the description of the parts."""

from dataclasses import fields
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from tokenflex import checkpoint
from tokenflex.errors import ConfigError
from tokenflex.loadable import configuration, without_code

ALIGN = ("compact", "input")
"""Where outputs stand: at the positions of the shortened sequence, or of the caller's."""

OWN = frozenset(
    {
        "host",
        "parts",
        "adapters",
        "architectures",
        "auto_map",
        "distributed_config",
        "dtype",
        "fusion_config",
        "name_or_path",
        "quantization_config",
        "transformers_version",
        "transformers_weights",
    }
)
"""Entries that describe the model as a whole, or the files it is loaded from; every other entry is the host's."""
NO_PREDICTIONS = (
    "cache",
    "past_key_values",
    "decisions",
    *(f"{modality}_{what}" for modality in ("image", "video", "audio") for what in ("outputs", "hidden_states")),
    "deepstack_features",
    "rope_deltas",
)
"""Outputs of hosts, and of this model, that go with one call."""
FIELDS: dict[str, Any] = {field.name: field.default for field in fields(PreTrainedConfig)}  # pyright: ignore[reportArgumentType]
SHARED = frozenset(FIELDS) - OWN | {"num_labels", "output_attentions"}
"""What every configuration has, and is read from the host's."""
PASSED_ON = {
    "attn_implementation": "_attn_implementation",
    "experts_implementation": "_experts_implementation",
    "output_attentions": "output_attentions",
}
"""Settings of `from_pretrained` that the host's configuration gets, and the attributes they set."""


class FlexConfig(PreTrainedConfig):
    """What ``config.json`` of a host saved together with its parts holds.

    ``host`` is the host's configuration object itself, not a copy, and every entry that isn't this class's own is read
    from it and written to it: ``flex.config.use_cache = False`` is ``flex.host.config.use_cache = False``.

    Attributes:
        host: the host's configuration.
        parts: the description `tokenflex.checkpoint.describe` gives; ``tokenflex.json`` holds the same.
        adapters: PEFT's adapters on the host, as `tokenflex.model.peft_hosts.describe` gives them; None without.
        align: where outputs of ``forward`` stand, ``compact`` or ``input``; None: ``compact`` (see docs/clients.md).
    """

    model_type = "tokenflex"
    sub_configs: ClassVar = {"host": AutoConfig}  # pyright: ignore[reportAssignmentType]

    host: PreTrainedConfig | dict[str, Any] | None = None
    parts: dict[str, Any] | None = None
    adapters: dict[str, Any] | None = None
    align: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Make the host's configuration from its data; where there is none, LLaVA-NeXT's defaults.

        Args:
            kwargs: further entries; those that aren't this class's own change the host's configuration.
        """
        host = self.__dict__.pop("host", None)  # while it is away, the base class can't change it
        if not isinstance(host, PreTrainedConfig):
            host = configuration(host or {"model_type": "llava_next"}, "config.json: host")
        for name in ("parts", "adapters"):
            if not isinstance(getattr(self, name), dict | None):
                raise ConfigError(f"config.json: {name}={getattr(self, name)!r:.200}; expected an object.")
        if self.parts is not None:
            checkpoint.check_shape(self.parts)
        shared = {name: kwargs.pop(name) for name in PASSED_ON if kwargs.get(name) is not None}
        shared |= {name: value for name, value in self.__dict__.items() if _changed(name, value)}
        shared |= {name: value for name, value in kwargs.items() if not _own(name) and name != "torch_dtype"}
        super().__post_init__(**{name: value for name, value in kwargs.items() if name not in shared})
        for name in [name for name in self.__dict__ if not _own(name)]:
            del self.__dict__[name]
        super().__setattr__("host", host)
        for name, value in shared.items():
            setattr(self, PASSED_ON.get(name, name), value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a configuration's dictionary; keys of files that could name code are passed over."""
        return super().from_dict(without_code(config_dict), **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: saved folders name this package, and the file of this class isn't copied into them."""

    def __getattribute__(self, name: str) -> Any:
        """The host's value of what every configuration has, except for this class's own entries."""
        host = _host_of(self) if name in SHARED else None
        return super().__getattribute__(name) if host is None else getattr(host, name)

    def __getattr__(self, name: str) -> Any:
        """The host's value of what only the host has; no code of a folder's own, for who asks without looking first."""
        if name == "auto_map":
            return {}
        host = None if name.startswith("_") or name in OWN else _host_of(self)
        if host is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(host, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Change the host's value of every entry that isn't this class's own.

        Raises:
            ConfigError: ``align`` is set to something unknown.
        """
        if name == "align" and value is not None and value not in ALIGN:
            raise ConfigError(f"align={value!r:.200}; use one of {', '.join(map(repr, ALIGN))}.")
        host = None if _own(name) else _host_of(self)
        if host is None:
            super().__setattr__(name, value)
        else:
            setattr(host, name, value)

    @property
    def _attn_implementation(self) -> Any:
        """The host's; a mapping gives each of its sub-configurations its own, as on the host itself."""
        host = _host_of(self)
        return None if host is None else host._attn_implementation

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | dict[str, Any] | None) -> None:
        host = _host_of(self)
        if host is not None and value is not None:
            host._attn_implementation = _of_host(value)

    @property
    def _experts_implementation(self) -> Any:
        """This model has no experts of its own; setting it sets the host's."""
        return self.__dict__.get("_experts_implementation_internal")

    @_experts_implementation.setter
    def _experts_implementation(self, value: str | dict[str, Any] | None) -> None:
        host = _host_of(self)
        if host is not None and value is not None:
            host._experts_implementation = _of_host(value)

    @property
    def keys_to_ignore_at_inference(self) -> list[str]:
        """Outputs that aren't predictions: the host's list, and what ``Trainer`` can't gather over batches."""
        own = getattr(self.host, "keys_to_ignore_at_inference", None) or []
        return list(dict.fromkeys([*own, *NO_PREDICTIONS]))

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The configuration of the host's language model."""
        host: Any = self.host
        return host.get_text_config(*args, **kwargs)


def _own(name: str) -> bool:
    return name in OWN or name.startswith("_") or (name not in SHARED and hasattr(FlexConfig, name))


def _changed(name: str, value: Any) -> bool:
    """Whether a field of the base class was given another value than its default."""
    return name in FIELDS and not _own(name) and value != FIELDS[name]


def _host_of(config: FlexConfig) -> Any:
    """The host's configuration; None before there is one."""
    host = object.__getattribute__(config, "__dict__").get("host")
    return host if isinstance(host, PreTrainedConfig) else None


def _of_host(value: Any) -> Any:
    return value["host"] if isinstance(value, dict) and "host" in value else value
