"""What a setting must be besides its type: rules that stand beside the type, and types that have one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Rule:
    """A mark on the type of a setting: ``threshold: Annotated[float, Rule(...)] = 0.9``.

    It is asked when the config is made, after the value was found to be of the type.

    Attributes:
        keeps: whether a value keeps the rule.
        message: the rule as it follows the value in a message, with what to use instead, as a whole sentence: ``is no
            share; use a number from 0 to 1.``
    """

    keeps: Callable[[Any], bool]
    message: str


def one_of(*choices: str) -> Rule:
    """The value is one of ``choices``: ``merge: Annotated[str, one_of("mean", "add")] = "mean"``."""
    return Rule(lambda value: value in choices, f"is none of {', '.join(map(repr, choices))}; use one of them.")


Share = Annotated[float, Rule(lambda value: 0 <= value <= 1, "is no share; use a number from 0 to 1.")]
"""A number from 0 to 1."""
Positive = Annotated[float, Rule(lambda value: value > 0, "must be a finite number above 0.")]
"""A finite number above 0."""
NotNegative = Annotated[float, Rule(lambda value: value >= 0, "must be a finite number, 0 or more.")]
"""A finite number, 0 or more."""
Count = Annotated[int, Rule(lambda value: value >= 1, "must be an integer, 1 or more.")]
"""An integer, 1 or more."""
