"""``Component``: what scalers, routers, voters and policies have in common."""

import dataclasses
import inspect
from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from tokenflex.contracts.settings import settle
from tokenflex.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComponentConfig:
    """Frozen, keyword-only settings of one component: plain data, so that they can live in a JSON file.

    Sizes that depend on the host (``dim``, ``num_levels``, ...) are no settings; they are given to `build`.

    Values are held to their declared types when the config is made, and to the rules beside these: see `Rule` and
    `tokenflex.contracts.settings.settle`. What concerns several settings together is checked in a ``__post_init__`` of
    the config's own, which calls this one first.

    Raises:
        ConfigError: a value is of another type than declared, a number that isn't finite, or against a rule.
    """

    owner: ClassVar[type["Component"]]
    __no_type_check__: ClassVar[bool] = True  # settings are held to their types here, in this library's own words

    def __post_init__(self) -> None:
        settle(self)

    def build(self, **sizes: Any) -> Any:
        """Make the component.

        Args:
            sizes: the sizes known at run time: ``dim`` (width of the language model), ``num_levels``,
                ``grid`` (tokens of one view of the host), ``segments`` (layout of the voters on that grid).
                A component's constructor names those it needs and gets only these.

        Raises:
            ConfigError: a size the constructor asks for isn't given.
        """
        parameters = inspect.signature(self.owner.__init__).parameters
        wanted = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
        missing = [n for n in wanted if n not in sizes and parameters[n].default is inspect.Parameter.empty]
        if missing:
            raise ConfigError(
                f"{self.owner.__name__} needs the size(s) {missing} to be built, got {sorted(sizes)}. "
                f"Give them to build(), e.g. build({missing[0]}=...)."
            )
        return self.owner(self, **{name: sizes[name] for name in wanted if name in sizes})

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | Any) -> "ComponentConfig":
        """Rebuild from `to_dict`'s data; lists become tuples, as in a fresh config.

        Raises:
            ConfigError: a key isn't a setting of this component, or a value isn't of its type or against a rule.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(
                f'the settings of {cls.owner.__name__} are {data!r}; give them by name, as {{"name": value}}.'
            )
        known = [field.name for field in dataclasses.fields(cls)]
        settings: Mapping[str, Any] = data  # pyright: ignore[reportUnknownVariableType]
        unknown = sorted(set(settings) - set(known), key=str)
        if unknown:
            raise ConfigError(
                f"unknown setting(s) {unknown} for {cls.owner.__name__}; it knows {known}."
                f"{nearest(str(unknown[0]), known)} "
                "Correct the spelling, or install the version of the package that wrote them."
            )
        return cls(**{key: _tuples(value) for key, value in settings.items()})


def _inherited(cls: type["Component"]) -> type[ComponentConfig]:
    """A ``Config`` like that of the class it extends, which builds ``cls``."""
    settings = cls.Config
    named = {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}.Config", "__doc__": settings.__doc__}
    made: type[ComponentConfig] = dataclasses.dataclass(frozen=True, kw_only=True)(type("Config", (settings,), named))
    made.owner = cls
    return made


def _tuples(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    items: tuple[Any, ...] = tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return tuple(_tuples(item) for item in items)


class Component(nn.Module, ABC):
    """Base of every pluggable part. Subclasses are abstract (the kinds, and bases of methods) or final (the parts).

    A part nests a frozen dataclass named ``Config`` that extends `ComponentConfig`; its constructor takes
    that config and, as keywords, the sizes it needs:

        class Keep(Scaler):
            @dataclass(frozen=True, kw_only=True)
            class Config(ComponentConfig):
                every: int = 2

            def __init__(self, config: "Keep.Config", *, dim: int) -> None: ...

    A part that has the settings of the class it extends, and no more, nests none: it gets a ``Config`` of its own with
    these.
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wire ``Config`` to its component, refusing configs that aren't frozen keyword-only data."""
        super().__init_subclass__(**kwargs)
        config = cls.__dict__.get("Config")
        if config is None:
            if cls.Config is not ComponentConfig:
                cls.Config = _inherited(cls)
            return
        params = getattr(config, "__dataclass_params__", None)
        if not issubclass(config, ComponentConfig) or "__dataclass_params__" not in config.__dict__:
            raise TypeError(
                f"{cls.__name__}.Config must extend ComponentConfig and be decorated with "
                "@dataclass(frozen=True, kw_only=True)"
            )
        keyword_only = all(field.kw_only for field in dataclasses.fields(config))
        if params is None or not params.frozen or not keyword_only:
            raise TypeError(f"{cls.__name__}.Config must be @dataclass(frozen=True, kw_only=True)")
        config.owner = cls

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__()
        self.config = config

    def extra_repr(self) -> str:
        """The settings that differ from their defaults."""
        shown: list[str] = []
        for field in dataclasses.fields(self.config):
            value = getattr(self.config, field.name)
            if value != field.default:
                shown.append(f"{field.name}={value!r}")
        return ", ".join(shown)
