"""Built-in hosts, what an adapter of one's own is made of, and the registry of all.

`placeholders`, `instruction_mask` and `instructions_of` are for adapters; no other module of this package is for use
from outside. ``names``, ``get``, ``provider``, ``register`` and ``temporary`` are those of the registry.
"""

from tokenflex.hosts import placeholders
from tokenflex.hosts.instruction import instruction_mask, instructions_of
from tokenflex.registry import hosts as _registry

get = _registry.get
names = _registry.names
provider = _registry.provider
register = _registry.register
temporary = _registry.temporary

__all__ = [
    "get",
    "instruction_mask",
    "instructions_of",
    "names",
    "placeholders",
    "provider",
    "register",
    "temporary",
]
