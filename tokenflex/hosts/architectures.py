"""Every architecture the generic adapter serves, by ``model_type``."""

from collections.abc import Mapping

from tokenflex.hosts import grid_thw, ragged, square
from tokenflex.hosts.architecture import Architecture

ARCHITECTURES: Mapping[str, Architecture] = {
    **square.ARCHITECTURES,
    **ragged.ARCHITECTURES,
    **grid_thw.ARCHITECTURES,
}
