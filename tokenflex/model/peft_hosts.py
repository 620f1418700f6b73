"""Hosts wrapped by PEFT, as data: enough to build the same modules again before their weights are loaded.

Only LoRA (DoRA and rank-stabilised LoRA among it) is described, by an allow-list of plain settings; other kinds of
adapters run and train, and are refused when the whole model is saved.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from tokenflex.errors import ConfigError

SETTINGS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "fan_in_fan_out",
    "bias",
    "use_rslora",
    "use_dora",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
)
"""Settings of LoRA that shape its modules."""
UNSHAPING = (
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "runtime_config",
)
"""Settings that matter while an adapter is made, or say where it comes from; its weights hold the outcome."""


def refusal(host: Any) -> str | None:
    """Why a host's adapters can't be described, as a clause; None where they can, or there are none."""
    configs = _configs(host)
    for name, config in configs.items():
        if type(config).__name__ != "LoraConfig":
            return f"its adapter {name!r} is a {type(config).__name__}, and only LoRA can be built again"
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.name not in (*SETTINGS, *UNSHAPING) and value != _default(field):
                return f"its adapter {name!r} sets {field.name}={value!r}, which can't be built again"
    layers = [module for module in host.modules() if hasattr(module, "merged_adapters")]
    if configs and any(layer.merged_adapters for layer in layers):
        return "an adapter is merged into its weights; unmerge it first"
    if configs and any(getattr(layer, "disable_adapters", False) is True for layer in layers):
        return "its adapters are disabled; enable them first"
    if configs and any(".original_module." in name for pair in tied(host).items() for name in pair):
        return "modules_to_save copies a layer whose weights are tied to another's; untie them first"
    return None


def describe(host: Any) -> dict[str, Any] | None:
    """JSON-ready description of a host's adapters, from which `rebuild` makes the same modules; None without any."""
    configs = _configs(host)
    if not configs:
        return None
    active: Any = host.active_adapters
    return {
        "active": [active] if isinstance(active, str) else list(active),
        "float32": any("lora_" in name and p.dtype.itemsize == 4 for name, p in host.named_parameters()),
        "lora": {name: _settings(config) for name, config in configs.items()},
    }


def rebuild(host: Any, description: Mapping[str, Any]) -> Any:
    """A plain host with the adapters of a description, weights still to come.

    Raises:
        ConfigError: PEFT isn't installed, or the description has other entries than `describe` gives.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError(
            f"this model was saved with LoRA adapters on its host, and PEFT can't be imported ({error}). Install it: "
            "pip install peft."
        ) from error
    lora, active = description.get("lora"), description.get("active")
    if set(description) != {"active", "float32", "lora"} or not isinstance(lora, Mapping) or not lora:
        raise ConfigError(f"config.json: adapters has the entries {sorted(description)}; the file was edited.")
    if not isinstance(active, list) or not set(active) <= set(lora):
        raise ConfigError(f"config.json: adapters: active={active!r}, of {sorted(lora)}; the file was edited.")
    configs = {name: LoraConfig(**_checked(name, settings)) for name, settings in lora.items()}
    (first, config), *others = configs.items()
    wrapped: Any = get_peft_model(host, config, adapter_name=first)
    for name, other in others:
        wrapped.add_adapter(name, other)
    thaw(wrapped, description)
    return wrapped


def tied(host: nn.Module) -> dict[str, str]:
    """Names of parameters that are the same as an earlier one, and the earlier one's name."""
    first: dict[int, str] = {}
    named = host.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}


def tied_when_built(host: Any) -> dict[str, str]:
    """The same for a host that `rebuild` made and whose weights are still to come, from what its base model says.

    Layers that PEFT has put into others are found under their new names.
    """
    base = host.get_base_model()
    prefix = next(name for name, module in host.named_modules() if module is base)
    names = {name for name, _ in host.named_parameters(remove_duplicate=False)}

    def found(name: str) -> str | None:
        owner, _, leaf = f"{prefix}.{name}".rpartition(".")
        places = (f"{owner}.{leaf}", f"{owner}.base_layer.{leaf}", f"{owner}.original_module.{leaf}")
        return next((place for place in places if place in names), None)

    pairs = {found(target): found(source) for target, source in base.all_tied_weights_keys.items()}
    return {target: source for target, source in pairs.items() if target is not None and source is not None}


def thaw(host: Any, adapters: Mapping[str, Any]) -> None:
    """Make trainable what PEFT trains, and nothing else; loading weights makes everything trainable."""
    active = adapters["active"]
    host.requires_grad_(False)
    host.base_model.set_adapter(active)
    host.active_adapter = active[0]


def _configs(host: Any) -> dict[str, Any]:
    """Adapters by name; none where the host is no PEFT wrapper."""
    return dict(host.peft_config) if hasattr(host, "get_base_model") and hasattr(host, "peft_config") else {}


def _settings(config: Any) -> dict[str, Any]:
    found = {name: getattr(config, name) for name in SETTINGS if hasattr(config, name)}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in found.items()}


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _checked(name: str, settings: Any) -> dict[str, Any]:
    if not isinstance(settings, Mapping) or not set(settings) <= set(SETTINGS):
        raise ConfigError(
            f"config.json: adapter {name!r} has the settings {settings!r}; known are {', '.join(SETTINGS)}. The file "
            "was edited or written by another version of tokenflex."
        )
    return dict(settings)
