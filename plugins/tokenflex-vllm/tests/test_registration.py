"""What vLLM finds when it starts; its own package stands in where it isn't installed."""

import importlib
import importlib.metadata
import logging
import sys
from importlib.metadata import entry_points
from types import ModuleType, SimpleNamespace

import pytest

from tokenflex_vllm import registration


@pytest.fixture
def registered(monkeypatch):
    """Architectures and classes that were registered; and a way to say which version is installed."""
    found = {}
    stand_in = ModuleType("vllm")
    stand_in.ModelRegistry = SimpleNamespace(register_model=found.__setitem__)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    return found


def installed(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"vllm": version}[name])


@pytest.mark.parametrize("version", ["0.32.0", "0.32.5+cpu", "0.32.1rc1"])
def test_versions_that_were_tried(monkeypatch, registered, version):
    installed(monkeypatch, version)
    registration.register()
    assert registered == registration.MODELS
    registration.register()
    assert registered == registration.MODELS


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.0", "0.4.3"])
def test_other_versions_are_left_alone(monkeypatch, registered, caplog, version):
    installed(monkeypatch, version)
    with caplog.at_level(logging.ERROR, logger="vllm.tokenflex"):
        registration.register()
    assert registered == {}
    assert f"leaves vLLM {version} as it is" in caplog.text


def test_the_entry_point_is_found_by_vllm():
    (found,) = (point for point in entry_points(group="vllm.general_plugins") if point.name == "tokenflex")
    assert found.load() is registration.register


def test_classes_are_named_as_they_are():
    pytest.importorskip("vllm", reason="vLLM isn't installed; 'just vllm' makes an environment that has it")
    for name in registration.MODELS.values():
        module, _, attribute = name.partition(":")
        assert hasattr(importlib.import_module(module), attribute)
