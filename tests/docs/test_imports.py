"""What pages and examples import is public: it is in the reference, or in the ``__all__`` of a public package."""

import ast
import importlib
import re

import pytest

import tokenflex
from tests.docs.fences import PAGES, ROOT, blocks

REFERENCE = {
    path
    for page, text in PAGES.items()
    if page.startswith("docs/reference/")
    for path in re.findall(r"^::: (\S+)$", text, re.MULTILINE)
}
STAND_INS = ("tokenflex.testing.zoo.", "tokenflex.quickstart.", "tokenflex.study.")
"""Where tiny models live that stand in for real ones, so that a page or an example runs without a download; and the
steps of a command that an example shows one by one."""
EXAMPLES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "examples").rglob("*.py")}
SHOWN = {
    **{page: "".join(b.text for b in blocks(page) if b.language == "python" and b.reason is None) for page in PAGES},
    **EXAMPLES,
}
"""Page or example -> its Python."""


def imported(text: str) -> list[str]:
    """Dotted paths of what Python imports of this library, the outermost package aside."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [path for path in found if path.startswith("tokenflex.")]


def public(path: str) -> bool:
    """Whether it is in the reference, itself or with its module, a name of a public package, or a stand-in."""
    module, _, name = path.rpartition(".")
    if path in REFERENCE or module in REFERENCE or path.startswith(STAND_INS):
        return True
    outermost = module.removeprefix("tokenflex").removeprefix(".")
    if outermost and outermost not in tokenflex.__all__:
        return False
    return name in importlib.import_module(module).__all__ or f"docs/reference/{name}.md" in PAGES


@pytest.mark.parametrize("place", [place for place, text in SHOWN.items() if imported(text)])
def test_what_is_shown_imports_public_names_only(place):
    assert [path for path in imported(SHOWN[place]) if not public(path)] == []


def test_what_is_inside_is_not_public():
    assert not public("tokenflex.hosts.instruction.markers")
    assert not public("tokenflex.scalers.levels.RatioScaler")
    assert public("tokenflex.hosts.placeholders")
    assert public("tokenflex.scalers.SelectionScaler")
