"""Whether settings are of the types their class declares, and keep the rules beside them, told when they are made."""

import dataclasses
import functools
import math
import types
from collections.abc import Callable
from inspect import get_annotations as annotations
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tokenflex.contracts.numbers import integer, real, truth
from tokenflex.contracts.rules import Rule
from tokenflex.errors import ConfigError

LARGEST = 2**63
"""Integers stay below this, so that tensors and JSON readers everywhere can hold them."""


class _MisfitError(Exception):
    """A value isn't of the declared type."""


class _BrokenRuleError(_MisfitError):
    """A value is of the declared type and breaks a rule beside it.

    Args:
        place: where in the setting it is: ``[1]`` of a tuple, empty for the setting itself.
    """

    def __init__(self, value: Any, rule: Rule, place: str = "") -> None:
        super().__init__(rule.message)
        self.value, self.rule, self.place = value, rule, place


def settle(settings: Any) -> None:
    """Check each field of a frozen dataclass against its declared type, and make its value plain.

    Numbers of numpy and tensors without axes become Python's, an integer where a float is declared becomes a float, a
    list where a tuple is declared becomes a tuple. Known are int, float, bool, str, None, literals, tuples and unions
    of these, each with a `Rule` beside it where it is ``Annotated``; fields declared as anything else are left as they
    are.

    Raises:
        ConfigError: a value is of another type, a number that isn't finite, or against a rule.
    """
    made: Any = type(settings)  # pyright: ignore[reportUnknownVariableType]
    hints = _hints(made)
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints.get(field.name, Any)
        owner, default = getattr(made, "owner", made).__name__, field.default
        example = "" if default is dataclasses.MISSING else f" The default is {default!r}."
        try:
            plain = _plain(value, hint)
        except _BrokenRuleError as broken:
            raise ConfigError(
                f"{field.name}{broken.place}={broken.value!r} {broken.rule.message} "
                f"It is a setting of {owner}.{example}"
            ) from None
        except _MisfitError:
            raise ConfigError(
                f"a value has the wrong type, or isn't finite: {field.name}={value!r} of {owner} must be "
                f"{_described(hint)}.{example}"
            ) from None
        if plain is not value:
            object.__setattr__(settings, field.name, plain)


def misfit(value: Any, hint: Any) -> str | None:
    """What a declared type wants, in words, where a value isn't of it; None where it is, or where the type isn't known.

    Args:
        hint: int, float, bool, str, None, a literal, a tuple or a union of these, with rules or not; all else passes.
    """
    try:
        _plain(value, hint)
    except _MisfitError:
        return _described(hint)
    return None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return {name: hint for base in reversed(cls.__mro__) for name, hint in annotations(base, eval_str=True).items()}
    except (NameError, AttributeError):  # names that only a type checker can see
        return {}


def _plain(value: Any, hint: Any) -> object:
    origin = get_origin(hint)
    if isinstance(hint, type) and hint in _PLAIN:
        found = _PLAIN[hint](value)
        if found is None:
            raise _MisfitError
        return found
    if hint is None or hint is type(None):
        if value is not None:
            raise _MisfitError
        return None
    if origin is Literal:
        # By type too: True is equal to 1.
        if not any(type(value) is type(one) and value == one for one in get_args(hint)):
            raise _MisfitError
        return value
    if origin in (Union, types.UnionType):
        return _first(value, get_args(hint))
    if origin is tuple:
        return _tuple(value, get_args(hint))
    if origin is Annotated:
        return _ruled(value, *get_args(hint))
    return value


def _ruled(value: Any, hint: Any, *marks: Any) -> object:
    plain = _plain(value, hint)
    for mark in marks:
        if isinstance(mark, Rule) and not mark.keeps(plain):
            raise _BrokenRuleError(plain, mark)
    return plain


def _first(value: Any, hints: tuple[Any, ...]) -> object:
    """The value as the member of a union takes it that is of the value's own type, else as the first that takes it."""
    reason = _MisfitError()
    for hint in sorted(hints, key=lambda one: one is not type(value)):
        try:
            return _plain(value, hint)
        except _BrokenRuleError as broken:
            reason = broken
        except _MisfitError:
            continue
    raise reason


def _tuple(value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise _MisfitError
    items: tuple[Any, ...] = tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(items)
    if len(items) != len(hints):
        raise _MisfitError
    plain = tuple(_item(*row) for row in zip(items, hints, range(len(items)), strict=True))
    unchanged = isinstance(value, tuple) and all(one is other for one, other in zip(plain, items, strict=True))
    return items if unchanged else plain


def _item(value: Any, hint: Any, number: int) -> object:
    try:
        return _plain(value, hint)
    except _BrokenRuleError as broken:
        raise _BrokenRuleError(broken.value, broken.rule, f"[{number}]{broken.place}") from None


def _integer(value: Any) -> int | None:
    number = integer(value)
    return number if number is not None and -LARGEST <= number < LARGEST else None


def _finite(value: Any) -> float | None:
    number = real(value)
    return number if number is not None and math.isfinite(number) else None


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str) else None


_PLAIN: dict[Any, Callable[[Any], Any]] = {int: _integer, float: _finite, bool: truth, str: _text}


def _described(hint: Any) -> str:
    """A declared type in words."""
    known = {int: "an integer", float: "a finite number", bool: "True or False", str: "a text", type(None): "None"}
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and hint in known:
        return known[hint]
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin is Annotated:
        return _described(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(map(_described, inner))
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return f"a tuple, each item of it {_described(inner[0])}"
    if origin is tuple:
        return "a tuple of " + ", ".join(map(_described, inner))
    return str(hint)
