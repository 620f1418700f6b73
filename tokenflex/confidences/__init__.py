"""Built-in confidences, and the registry of all of them: ``names``, ``get``, ``register``, ``temporary``."""

from tokenflex.registry import confidences as _registry

get = _registry.get
names = _registry.names
provider = _registry.provider
register = _registry.register
temporary = _registry.temporary

__all__ = ["get", "names", "provider", "register", "temporary"]
