"""Makes the Auto classes of transformers know ``FlexModel``, without importing transformers or torch early.

``import tokenflex`` stays light. If transformers' Auto classes are loaded already they are told at once;
otherwise they are told right after they load.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

AUTO = "transformers.models.auto.modeling_auto"


def register_when_loaded() -> None:
    """Register now or as soon as transformers' Auto classes are imported."""
    if AUTO in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterAuto) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterAuto())


def _register() -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    model = importlib.import_module("tokenflex.model")
    AutoConfig.register("tokenflex", model.FlexConfig, exist_ok=True)
    AutoModelForImageTextToText.register(model.FlexConfig, model.FlexModel, exist_ok=True)


class _AfterAuto(MetaPathFinder):
    """Finds nothing itself; runs the registration after one module was executed, then removes itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register()
