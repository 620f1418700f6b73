"""Every error TokenFlex raises on purpose. Each names the value, the rule and the remedy."""

import difflib
from collections.abc import Iterable, Mapping

NOWHERE: Mapping[str, str] = {}


class TokenFlexError(Exception):
    """Base of all errors raised by TokenFlex."""


class ConfigError(TokenFlexError, ValueError):
    """A setting, recipe key or saved file says something that can't be honoured."""


class InputError(TokenFlexError, ValueError):
    """A batch given to a model doesn't fit together (images, placeholders, levels, labels)."""


class DataError(TokenFlexError, ValueError):
    """A row of a data set can't be used; the message names the row."""


class WriteError(TokenFlexError, OSError):
    """A file or folder can't be written, as on a full disk; the message names it."""


class LostProcessError(TokenFlexError, RuntimeError):
    """Another process that this one works with is gone: one that reads data, or another rank."""


class UnsupportedHostError(TokenFlexError, ValueError):
    """No host adapter serves this model, or the one that does declines it."""


class UnknownComponentError(TokenFlexError, KeyError):
    """No component of this kind is registered under this name."""

    def __str__(self) -> str:
        return str(self.args[0])


class DuplicateComponentError(TokenFlexError, ValueError):
    """Two providers offer a component of the same kind under the same name."""


class BrokenPluginError(TokenFlexError, ImportError):
    """A registered component exists but can't be imported, or isn't what its kind requires."""


def nearest(word: str, known: Iterable[str], missing: Mapping[str, str] = NOWHERE) -> str:
    """A question for the nearest word that is known, with a space before it; empty without one.

    Args:
        missing: further words -> the distribution that would have to be installed.
    """
    near = difflib.get_close_matches(word, [*known, *missing], n=1)
    if not near or near[0] == word:
        return ""
    get = f" (pip install {missing[near[0]]})" if near[0] in missing else ""
    return f" Did you mean {near[0]!r}{get}?"
