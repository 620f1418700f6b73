"""Which parts a recipe trains: saved ones taken up, fresh ones by name. One rule, with the host and without it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers import AutoConfig

from tokenflex import checkpoint, reading
from tokenflex.checkpoint import KINDS, Spec
from tokenflex.contracts import ComponentConfig
from tokenflex.errors import ConfigError, TokenFlexError
from tokenflex.model import FlexConfig, stored
from tokenflex.training.recipe import Recipe

FRESH = {"scaler": "average-pool", "router": "avg", "voter": "position-weighted", "policy": "argmax"}
"""What fresh parts are where a recipe names none."""


@dataclass(frozen=True)
class Saved:
    """Parts that are there already.

    Attributes:
        where: the folder or repository they come from.
        spec: their description.
        state: their weights, by names that begin with the kind of part.
    """

    where: str
    spec: Spec
    state: Mapping[str, Tensor]

    def config(self, kind: str) -> ComponentConfig:
        """Settings of the part of one kind."""
        return checkpoint.config_from(kind, self.spec["parts"][kind])

    def weights(self, kind: str) -> dict[str, Tensor]:
        """Weights of one part, by its own names."""
        prefix = f"{kind}."
        return {name.removeprefix(prefix): value for name, value in self.state.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class ChosenParts:
    """What a recipe trains.

    Attributes:
        configs: settings of every kind of part.
        kept: kinds whose weights are taken up, and from what.
    """

    configs: Mapping[str, ComponentConfig]
    kept: Mapping[str, Saved]

    def lines(self) -> list[str]:
        """Where each kind comes from, for people."""
        fresh = {kind: f"fresh {KINDS[kind].name_of(config.owner)}" for kind, config in self.configs.items()}
        origins = {kind: f"from {self.kept[kind].where}" if kind in self.kept else fresh[kind] for kind in fresh}
        return [f"{kind}: {origins[kind]}" for kind in KINDS if kind != "policy"]

    def fill(self, parts: nn.Module) -> None:
        """Put the weights that are taken up into newly built parts.

        Raises:
            ConfigError: they don't fit what is fresh beside them.
        """
        for kind, saved in self.kept.items():
            try:
                checkpoint.fill(getattr(parts, kind), saved.weights(kind), saved.where)
            except ConfigError as error:
                fresh = [one for one in KINDS if one not in self.kept]
                if not fresh:
                    raise
                raise ConfigError(
                    f"the {kind} of {saved.where} doesn't fit the fresh {' and '.join(fresh)} beside it; start it anew "
                    f"too: fresh: [{', '.join([*fresh, kind])}]. ({error})"
                ) from None


def choose(recipe: Recipe, sources: Mapping[str, Saved]) -> ChosenParts:
    """Saved parts, where there are some and ``fresh`` doesn't name their kind; else those the recipe names.

    Args:
        sources: what is there already, by kind.

    Raises:
        ConfigError: a key of the recipe contradicts a saved part, or names one that isn't known.
    """
    configs: dict[str, ComponentConfig] = {}
    kept = {kind: saved for kind, saved in sources.items() if kind not in recipe.fresh}
    for kind in KINDS:
        kept_config = kept[kind].config(kind) if kind in kept else None
        configs[kind] = _asked(recipe, kind, kept_config)
        if kept_config is not None and configs[kind] != kept_config:
            raise ConfigError(
                f"the recipe asks for the {kind} {checkpoint.described(kind, configs[kind])}, and {kept[kind].where} "
                f"has {checkpoint.described(kind, kept_config)}. Leave {kind} and {kind}_config out to go on with that,"
                f" or start anew with fresh: [{kind}]."
            )
    return ChosenParts(configs, kept)


def _asked(recipe: Recipe, kind: str, saved: ComponentConfig | None) -> ComponentConfig:
    """Settings the recipe leaves out are those of the saved part of the same name."""
    name, settings = getattr(recipe, kind, None), getattr(recipe, f"{kind}_config", None)
    if isinstance(settings, str):
        settings = reading.json_text(settings, f"{kind}_config of the recipe")
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"{kind}_config={settings!r:.200}; give the settings by name, as {{name: value}}.")
    settings = dict(settings or {})
    if saved is not None and (name is None or KINDS[kind].get(name) is saved.owner):
        return type(saved).from_dict({**saved.to_dict(), **settings})
    return KINDS[kind].get(name or FRESH[kind]).Config.from_dict(settings)


def of_folder(folder: str) -> dict[str, Saved]:
    """What `FlexModel.save_parts` wrote, by kind.

    Raises:
        ConfigError: a file is missing or isn't readable.
    """
    spec, state = checkpoint.load(folder)
    return dict.fromkeys(KINDS, Saved(folder, spec, state))


def of_host(host: str) -> dict[str, Saved]:
    """The parts of a saved `FlexModel`, by kind, without loading its host; nothing for a plain host.

    Args:
        host: a folder, or an id on the model hub.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        config = AutoConfig.from_pretrained(host)
    except TokenFlexError:
        raise
    except Exception as error:  # whatever transformers raises for settings that it wasn't made for
        raise ConfigError(f"host {host!r} can't be read: {error} Give a folder or hub id with a model.") from error
    if not isinstance(config, FlexConfig) or config.parts is None:
        return {}
    digest = config.parts.get(checkpoint.DIGEST)
    state = stored.weights(host)
    checkpoint.require_sound(state, host)
    if Path(host).is_dir():
        stored.require_same(digest, state, host)
    return dict.fromkeys(KINDS, Saved(host, config.parts, state))
