"""All tiny hosts, by ``model_type``."""

from collections.abc import Mapping

from tokenflex.testing.zoo import (
    anyres,
    crops,
    gemma,
    glm,
    llava,
    mrope,
    native,
    omni,
    pixtral,
    qwen,
    ragged,
    rows,
    squares,
    tiles,
)
from tokenflex.testing.zoo.recipe import TinyHost

FILES = (anyres, crops, gemma, glm, llava, mrope, native, omni, pixtral, qwen, ragged, rows, squares, tiles)
ZOO: Mapping[str, TinyHost] = {tiny.model_type: tiny for file in FILES for tiny in file.HOSTS}
