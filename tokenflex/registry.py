"""Components by name: built-ins from the catalog, everything else from entry points.

Names are listed without importing anything; a component is imported, and checked, when it is first asked for.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tokenflex import offered
from tokenflex.contracts import Confidence, HostAdapter, Policy, Router, Scaler, Voter
from tokenflex.errors import BrokenPluginError, DuplicateComponentError, TokenFlexError, UnknownComponentError
from tokenflex.offered import BUILT_IN, Provider

T = TypeVar("T")
__all__ = [
    "BUILT_IN", "NOTEBOOK", "REGISTRIES", "Listing", "Provider", "Registry",
    "confidences", "hosts", "policies", "routers", "scalers", "voters",
]  # fmt: skip
NOTEBOOK = "this session"


@dataclass(frozen=True)
class Listing:
    """One registered name, for lists.

    Attributes:
        provider, version: of the distribution; both providers' where two clash.
        state: ``ok``, or ``broken``.
        cause: why it is broken.
        summary: first line of its documentation.
    """

    kind: str
    name: str
    provider: str
    version: str
    state: str
    cause: str = ""
    summary: str = ""


class Registry(Generic[T]):
    """The components of one kind.

    Args:
        kind: singular noun for messages, e.g. ``scaler``.
        base: what every component of this kind must be a subclass of.
    """

    def __init__(self, kind: str, base: type[T]) -> None:
        self.kind, self.base, self.group = kind, base, offered.group(kind)
        self._added: dict[str, Provider] = {}

    def names(self) -> list[str]:
        """All registered names, sorted; nothing is imported."""
        return sorted(self._providers())

    def provider(self, name: str) -> Provider:
        """Who offers ``name``.

        Raises:
            UnknownComponentError: nobody does; the message has the nearest name and the whole list.
            DuplicateComponentError: more than one does.
        """
        found = self._providers().get(name, [])
        if not found:
            raise UnknownComponentError(offered.unknown(self.kind, name, self._providers()))
        if len(found) > 1:
            who = " and ".join(sorted(provider.distribution for provider in found))
            raise DuplicateComponentError(
                f"the {self.kind} {name!r} is offered by {who}; uninstall one, or ask it to rename its entry point."
            )
        return found[0]

    def get(self, name: str) -> type[T]:
        """The component class registered as ``name``, imported now if it wasn't.

        Raises:
            UnknownComponentError, DuplicateComponentError: see `provider`.
            BrokenPluginError: it can't be imported or isn't a subclass of this kind's contract.
        """
        provider = self.provider(name)
        try:
            loaded = _load(provider.target)
        except Exception as cause:
            raise BrokenPluginError(
                f"the {self.kind} {name!r} of {provider.distribution} {provider.version} can't be imported: "
                f"{type(cause).__name__}: {cause}. Reinstall or remove {provider.distribution}."
            ) from cause
        if not (inspect.isclass(loaded) and issubclass(loaded, self.base)):
            raise BrokenPluginError(
                f"the {self.kind} {name!r} of {provider.distribution} is {loaded!r}, "
                f"which is no subclass of {self.base.__name__}."
            )
        return loaded

    def listing(self, name: str) -> Listing:
        """What is known of ``name``, importing it; whatever is wrong with it ends up in ``cause``."""
        offers = self._providers()[name]
        who = " and ".join(dict.fromkeys(offer.distribution for offer in offers))
        version = " and ".join(dict.fromkeys(offer.version for offer in offers))
        try:
            doc = inspect.getdoc(self.get(name)) or ""
        except TokenFlexError as error:
            return Listing(self.kind, name, who, version, "broken", cause=str(error))
        return Listing(self.kind, name, who, version, "ok", summary=doc.strip().split("\n")[0])

    def name_of(self, component: type) -> str | None:
        """The name under which a class is registered, or None; imports nothing."""
        path = f"{component.__module__}:{component.__qualname__}"
        for name, providers in self._providers().items():
            for provider in providers:
                target = provider.target
                if target is component or provider.path == path:
                    return name
        return None

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator for notebooks and scripts: offer the class as ``name`` until the process ends.

        Registering the same qualified name again (a re-run cell) replaces the earlier class.
        """

        def add(component: type[T]) -> type[T]:
            before = self._added.get(name)
            redefined = before is not None and before.target.__qualname__ == component.__qualname__
            if name in self._providers() and not redefined:
                who = self._providers()[name][0].distribution
                raise DuplicateComponentError(
                    f"the {self.kind} {name!r} is already offered by {who}; choose another name."
                )
            self._added[name] = Provider(NOTEBOOK, "", component)
            return component

        return add

    @contextmanager
    def temporary(self, name: str, component: type[T]) -> Iterator[None]:
        """Offer ``component`` as ``name`` inside a ``with`` block only."""
        self.register(name)(component)
        try:
            yield
        finally:
            del self._added[name]

    def _providers(self) -> dict[str, list[Provider]]:
        found = offered.providers(self.kind)
        for name, provider in self._added.items():
            found.setdefault(name, []).append(provider)
        return found


def _load(target: Any) -> Any:
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        return getattr(importlib.import_module(module), attribute)
    return target.load() if hasattr(target, "load") and not inspect.isclass(target) else target


scalers: Registry[Scaler] = Registry("scaler", Scaler)
routers: Registry[Router] = Registry("router", Router)
voters: Registry[Voter] = Registry("voter", Voter)
policies: Registry[Policy] = Registry("policy", Policy)
confidences: Registry[Confidence] = Registry("confidence", Confidence)
hosts: Registry[HostAdapter] = Registry("host", HostAdapter)
REGISTRIES: tuple[Registry[Any], ...] = (scalers, routers, voters, policies, confidences, hosts)
