"""Templates of this package and of those above it, with the shared style and script."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, select_autoescape

from tokenflex.markup import readable
from tokenflex.pages.own import Own
from tokenflex.pages.plot import PALETTE, SHAPES


def rendered(template: str, **values: Any) -> str:
    """A page.

    Args:
        template: its path below the package, such as ``evaluation/report.html.jinja``; it extends
            ``pages/shell.html.jinja``.
        values: for the template. Strings are escaped; `tokenflex.pages.Plot` is markup of its own.
    """
    return _templates().get_template(template).render(**values)


def style() -> str:
    """The style sheet, with the colours of both themes."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1))
    colours = f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"
    return colours + _read("pages/page.css")


def script() -> str:
    """The script: sorting and filtering, nothing else."""
    return _read("pages/page.js")


def policy() -> str:
    """The content security policy of a page: its own script alone may run, and nothing is fetched."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _templates() -> Environment:
    known = Environment(
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=readable,
        loader=FunctionLoader(_read),
    )
    known.globals |= {
        "style": Own(style()),
        "script": Own(script()),
        "policy": policy(),
        "shapes": SHAPES,
    }
    return known


def _read(path: str) -> str:
    return files("tokenflex").joinpath(path).read_text(encoding="utf-8")
