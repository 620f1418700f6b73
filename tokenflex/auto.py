"""Makes the Auto classes of transformers know this package's models, without importing transformers or torch early.

``import tokenflex`` stays light. If transformers' Auto classes are loaded already they are told at once; otherwise
right after they load. Whichever is imported first, Auto classes or models, the later one's end triggers it.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

AUTO = "transformers.models.auto.modeling_auto"
MODELS = {
    "tokenflex.composed": ("ComposedConfig", "ComposedForConditionalGeneration"),
    "tokenflex.model": ("FlexConfig", "FlexModel"),
}
"""Package -> its configuration and model."""


def register_when_loaded() -> None:
    """Register now or as soon as transformers' Auto classes are imported."""
    if any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        return
    watcher = _Watcher()
    sys.meta_path.insert(0, watcher)
    if AUTO in sys.modules:
        watcher.executed(AUTO)


def _register(package: str) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    module = importlib.import_module(package)
    config, model = (getattr(module, name) for name in MODELS[package])
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForImageTextToText.register(config, model, exist_ok=True)


class _Watcher(MetaPathFinder):
    """Finds nothing itself; learns when the Auto classes and the models have been executed."""

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self.asking or fullname not in (AUTO, *MODELS):
            return None
        self.asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, lambda: self.executed(fullname))
        return spec

    def executed(self, name: str) -> None:
        """Register what is complete; a model in the middle of its import comes here again at its end."""
        self.done.add(name)
        if AUTO not in self.done:
            return
        for package in MODELS:
            if package in self.done or package not in sys.modules:
                _register(package)


class _Then(Loader):
    """Loads as the module's own loader does, puts that back in place, then makes a call."""

    def __init__(self, loader: Loader, call: Callable[[], None]) -> None:
        self.loader, self.call = loader, call

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.call()
