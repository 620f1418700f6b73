"""Settings: what is compared on one host, by name.

``level:N``            every image at that level; ``levels`` for all of them
``router``             as the model decides by itself
``router@ratio=0.3``   the same under a budget, with the settings of `tokenflex.Budget`: ``router@tokens=100,floor=1``
``escalate``           coarse answers, and finer ones where the model is unsure, as was calibrated for the model;
                       ``escalate@threshold=0.9,levels=[0,4]`` with the settings of `tokenflex.Escalate`
``router+escalate``    the same from the router's level on; likewise with settings
``random``             a level at random for each image and question; ``random@seed=1``
``scaler:NAME``        another scaler on the same host, at each of its levels; ``scaler:NAME:N`` at one of them,
                       ``scaler:NAME@windows=[[2,2],[1,1]]`` with settings
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from tokenflex import offered, reading, registry
from tokenflex.catalog import SETTING_FORMS as FORMS
from tokenflex.compressor import Compressor
from tokenflex.contracts import ComponentConfig
from tokenflex.errors import ConfigError, InputError, UnknownComponentError
from tokenflex.model import Budget, Escalate, FlexModel, request, wrap
from tokenflex.registry import policies, routers, scalers, voters

GROUPS = ("level", "router", "budget", "escalate", "random", "scaler")
"""In the order of reports."""
ROUTED = "router+escalate"


@dataclass(frozen=True)
class Setting:
    """One way of running the host.

    Attributes:
        name: in full: ``level:-1`` has become ``level:4``.
        group: one of `GROUPS`.
        flex: the model that runs; its host is the same in all settings.
        level: forces a level.
        budget: replaces the model's own policy.
        escalate: what answers are allowed to.
    """

    name: str
    group: str
    flex: FlexModel
    level: int | None = None
    budget: ComponentConfig | None = None
    escalate: Escalate | None = None


def parse(flex: FlexModel, names: Sequence[str]) -> list[Setting]:
    """Settings by name, each once, in the order of reports.

    Raises:
        ConfigError: a name can't be understood, or names a level or setting that isn't there.
        UnknownComponentError: no scaler has that name.
    """
    found: dict[str, Setting] = {}
    for name in names:
        for setting in _expanded(flex, name.replace(" ", "")):
            found.setdefault(setting.name, setting)
    if not found:
        raise ConfigError(f"no settings to run; give one or more of {FORMS}.")
    return sorted(found.values(), key=lambda setting: rank(setting.name))


def group_of(name: str) -> str:
    """The group that a setting's full name belongs to."""
    head = name.partition(":")[0].partition("@")[0]
    return "budget" if name.startswith("router@") else "escalate" if head == ROUTED else head


def rank(name: str) -> tuple[Any, ...]:
    """Sorts full names as reports show them: by group, then by options for scalers, then by level."""
    head, _, options = name.partition("@")
    kind, _, level = head.rpartition(":")
    group = group_of(name)
    place = (kind, int(level)) if level.isdecimal() else (head, 0)
    return (GROUPS.index(group), options if group == "scaler" else "", *place, options)


def _expanded(flex: FlexModel, name: str) -> list[Setting]:
    head, at, text = name.partition("@")
    options = _options(name, text) if at else {}
    kind, *rest = head.split(":")
    if kind in ("levels", "level") and not options and len(rest) == (kind == "level"):
        wanted = [_level(rest[0], flex, name)] if rest else range(flex.compressor.num_levels)
        return [Setting(f"level:{level}", "level", flex, level=level) for level in wanted]
    if kind == "router" and not rest:
        return [Setting(name, "budget", flex, budget=_budget(flex, name, options)) if options
                else Setting("router", "router", flex)]  # fmt: skip
    if kind in ("escalate", ROUTED) and not rest:
        return [_escalating(flex, name, kind, options)]
    if kind == "random" and not rest:
        return [Setting(name, "random", _at_random(flex, options))]
    if kind == "scaler" and len(rest) in (1, 2):
        other = _with_scaler(flex, rest[0], options)
        wanted = [_level(rest[1], other, name)] if len(rest) == 2 else range(other.compressor.num_levels)
        return [Setting(f"scaler:{rest[0]}:{n}{at}{text}", "scaler", other, level=n) for n in wanted]
    raise ConfigError(offered.unknown_setting(name))


def _options(name: str, text: str) -> dict[str, Any]:
    try:
        options = reading.yaml_text("{" + re.sub(r"(\w+)=", r"\1: ", text) + "}", f"setting {name!r}")
    except ConfigError as error:
        raise ConfigError(f"setting {name!r}: write what follows @ as key=value,key=value. ({error})") from None
    if not isinstance(options, dict) or not options or any(value is None for value in options.values()):
        raise ConfigError(f"setting {name!r}: write what follows @ as key=value,key=value.")
    return {str(key): value for key, value in options.items()}


def _level(text: str, flex: FlexModel, name: str) -> int:
    count = flex.compressor.num_levels
    if not re.fullmatch(r"-?\d+", text) or not -count <= int(text) < count:
        raise ConfigError(f"setting {name!r}: {text!r} is no level; there are 0 (fewest tokens) to {count - 1} (all).")
    return int(text) % count


def _budget(flex: FlexModel, name: str, options: dict[str, Any]) -> ComponentConfig:
    options |= {key: float(options[key]) for key in ("ratio", "weight") if isinstance(options.get(key), int)}
    try:
        budget = Budget.from_dict(options)
        request.read(None, budget, flex.compressor.num_levels)
    except (InputError, ConfigError) as error:
        raise ConfigError(f"setting {name!r}: {error}") from error
    return budget


def _escalating(flex: FlexModel, name: str, kind: str, options: dict[str, Any]) -> Setting:
    """As the options say; without any as it was calibrated for the model, and then named in full."""
    start = "router" if kind == ROUTED else "coarsest"
    if options:
        try:
            asked = Escalate(**{"start": start, **{key: _number_of(key, value) for key, value in options.items()}})
            asked.ladder(flex.compressor.num_levels)
        except (InputError, ConfigError, UnknownComponentError, TypeError) as error:
            raise ConfigError(f"setting {name!r}: {error}") from error
        if asked.threshold is None or asked.start != start:
            raise ConfigError(f"setting {name!r}: give a threshold, and the start by the name: escalate or {ROUTED}.")
        return Setting(name, "escalate", flex, escalate=asked)
    asked = flex.escalate
    if asked is None or asked.start != start:
        raise ConfigError(
            f"setting {name!r}: nothing was calibrated for this model from that start; write {kind}@threshold=0.9."
        )
    full = f"{kind}@threshold={asked.threshold!r},measure={registry.confidences.name_of(asked.config.owner)}"
    return Setting(
        f"{full},levels={list(asked.ladder(flex.compressor.num_levels))}".replace(" ", ""),
        "escalate",
        flex,
        escalate=asked,
    )


def _number_of(key: str, value: Any) -> Any:
    """A value in the type that the settings of `Escalate` have."""
    if key == "levels" and isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d*)?e-?\d+", value):  # YAML's numbers have a point and a sign
        return float(value)
    return value


def _at_random(flex: FlexModel, options: dict[str, Any]) -> FlexModel:
    """The same host and scaler, with the random router."""
    config = routers.get("random").Config.from_dict(options)
    random = config.build(num_levels=flex.compressor.num_levels)
    voter, policy = voters.get("mean").Config().build(), policies.get("argmax").Config().build()
    parts = Compressor(flex.compressor.scaler, random, voter, policy)
    known: Any = flex.config
    return FlexModel(known, host=flex.host, compressor=parts, adapter=flex.adapter).eval()


def _with_scaler(flex: FlexModel, name: str, options: dict[str, Any]) -> FlexModel:
    """The same host with another scaler; settings that the model's own scaler has too (windows, say) are the same."""
    config_class, own = scalers.get(name).Config, flex.compressor.scaler.config
    shared = {field.name for field in fields(config_class)} & {field.name for field in fields(own)}
    taken = {key: getattr(own, key) for key in shared}
    config = config_class.from_dict({**taken, **options})
    other = wrap(flex.host, scaler=config, router="constant", voter="mean", adapter=flex.adapter).eval()
    if any(True for _ in other.compressor.scaler.parameters()):
        raise ConfigError(
            f"the scaler {name!r} has weights, which nobody has trained on this host. Train it, and evaluate the "
            "result as a model of its own."
        )
    return other
