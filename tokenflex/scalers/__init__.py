"""Built-in scalers, the bases to write others on, and the registry of all.

`SelectionScaler`, `MergingScaler`, `RatioScaler` and `WindowScaler` are bases. ``names``, ``get``, ``provider``,
``register`` and ``temporary`` are those of the registry.
"""

from tokenflex.registry import scalers as _registry
from tokenflex.scalers.levels import RatioScaler, WindowScaler
from tokenflex.scalers.merging import MergingScaler
from tokenflex.scalers.selection import SelectionScaler

get = _registry.get
names = _registry.names
provider = _registry.provider
register = _registry.register
temporary = _registry.temporary

__all__ = [
    "MergingScaler",
    "RatioScaler",
    "SelectionScaler",
    "WindowScaler",
    "get",
    "names",
    "provider",
    "register",
    "temporary",
]
