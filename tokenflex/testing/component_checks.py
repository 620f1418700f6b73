"""What holds for every part, whatever its kind."""

import copy
import json

from tokenflex.contracts import Component, ComponentConfig
from tokenflex.testing.bench import Bench, Check


def settings_are_data(bench: Bench) -> None:
    """Settings come back equal from JSON."""
    try:
        text = json.dumps(bench.config.to_dict())
    except TypeError as error:
        raise AssertionError(f"to_dict() isn't JSON-ready: {error}") from None
    again = type(bench.config).from_dict(json.loads(text))
    assert again == bench.config, f"after a round trip through JSON {bench.config} is {again}"


def weights_can_be_restored(bench: Bench) -> None:
    """A second part takes the first one's state dict, keys and shapes alike."""
    first, second = bench.build(), bench.build()
    missing, unexpected = second.load_state_dict(first.state_dict(), strict=False)
    assert not missing, f"its state dict lacks {missing}"
    assert not unexpected, f"its state dict has unexpected {unexpected}"


def can_be_copied(bench: Bench) -> None:
    """``copy.deepcopy`` gives an equal part."""
    part = bench.build()
    twin = copy.deepcopy(part)
    assert isinstance(twin, Component)
    assert twin.state_dict().keys() == part.state_dict().keys(), "a deep copy has another state dict"


def keeps_its_config(bench: Bench) -> None:
    """``part.config`` is the config it was built from."""
    held = getattr(bench.build(), "config", None)
    assert isinstance(held, ComponentConfig), "the constructor must call super().__init__(config)"
    assert held == bench.config, f"built from {bench.config}, it holds {held}"


CHECKS = (
    Check("settings-are-data", "settings survive a round trip through JSON", settings_are_data),
    Check("keeps-its-config", "a part holds the config it was built from", keeps_its_config),
    Check("weights-can-be-restored", "a state dict fits any part built from the same config", weights_can_be_restored),
    Check("can-be-copied", "a part can be deep-copied", can_be_copied),
)
