"""Makes the Auto classes of transformers know this package's models, without importing transformers or torch early.

``import tokenflex`` stays light. If transformers' Auto classes are loaded already they are told at once; otherwise
right after they have, together with whatever imports them.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from tokenflex import catalog

AUTO = ("transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto")
WATCHED = ("transformers.", "tokenflex.")
MODELS = {
    "tokenflex.composed": ("ComposedConfig", "ComposedForConditionalGeneration"),
    "tokenflex.model": ("FlexConfig", "FlexModel"),
}
"""Package -> its configuration and model."""


FALLBACK = "AutoModelForCausalLM"
"""What TRL and other clients load models with whose class isn't one of transformers' own."""
NAMES = ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES")
"""Tables of transformers, type of configuration -> name of a class, that ``transformers serve`` and pipelines read."""


def register_when_loaded() -> None:
    """Register now or as soon as transformers' Auto classes are imported."""
    if any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        return
    watcher = _Watcher()
    sys.meta_path.insert(0, watcher)
    watcher.register()


def _register(package: str) -> None:
    import transformers
    from transformers.models.auto import modeling_auto

    module = importlib.import_module(package)
    config, model = (getattr(module, name) for name in MODELS[package])
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    for name in (*catalog.AUTO_MODELS, FALLBACK):
        getattr(transformers, name).register(config, model, exist_ok=True)
    for name in NAMES:
        getattr(modeling_auto, name).setdefault(config.model_type, model.__name__)


class _Watcher(MetaPathFinder):
    """Finds nothing itself; learns when modules of transformers and of this package have been executed.

    Nothing is registered while one of them is being imported: the models need other modules of both, some of which may
    have begun and wait for the one that has just ended.
    """

    def __init__(self) -> None:
        self.asking = self.registered = False
        self.running = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self.asking or self.registered or not fullname.startswith(WATCHED):
            return None
        self.asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, self)
        return spec

    def register(self) -> None:
        """Register, once, if the Auto classes are there and nothing is being imported."""
        if self.registered or self.running or not any(auto in sys.modules for auto in AUTO):
            return
        self.registered = True
        try:
            for package in MODELS:
                _register(package)
        except BaseException:
            self.registered = False
            raise


class _Then(Loader):
    """Loads as the module's own loader does, which takes its place for everything else, then tells the watcher."""

    def __init__(self, loader: Loader, watcher: _Watcher) -> None:
        self.loader, self.watcher = loader, watcher

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "loader"), name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.watcher.running += 1
        try:
            self.loader.exec_module(module)
        finally:
            self.watcher.running -= 1
        self.watcher.register()
