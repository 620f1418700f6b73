"""An extension of griffe, which reads docstrings for the reference: entries of several names become several."""

import importlib.util
from pathlib import Path
from typing import Any

from griffe import Extension, Object

_spec = importlib.util.spec_from_file_location("tokenflex_site_entries", Path(__file__).with_name("entries.py"))
if _spec is None or _spec.loader is None:
    raise ImportError("docs/_site/entries.py can't be found")
_entries = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_entries)


class GroupedEntries(Extension):
    """Without it griffe takes ``scaler, router: ...`` for one parameter that the function doesn't have."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite an object's docstring before it is parsed."""
        if obj.docstring is None:
            return
        try:
            known = {_starred(parameter) for parameter in obj.parameters}  # type: ignore[attr-defined]
        except AttributeError:
            known = set()
        obj.docstring.value = _entries.separate(obj.docstring.value, known)


def _starred(parameter: Any) -> str:
    stars = {"variadic positional": "*", "variadic keyword": "**"}
    return stars.get(getattr(parameter.kind, "value", ""), "") + parameter.name.lstrip("*")
