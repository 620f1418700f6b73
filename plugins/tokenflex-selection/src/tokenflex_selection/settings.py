"""What settings may be; each check names the value, the rule and the remedy."""

import math

from tokenflex.errors import ConfigError


def share(name: str, value: float) -> float:
    """A number from 0 to 1.

    Raises:
        ConfigError: it is something else.
    """
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}={value!r} is no share; use a number from 0 to 1.")
    return float(value)


def at_least_zero(name: str, value: float) -> float:
    """A finite number, 0 or more.

    Raises:
        ConfigError: it is something else.
    """
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name}={value!r} must be a finite number that isn't negative; 0 turns it off.")
    return float(value)


def positive(name: str, value: float) -> float:
    """A finite number above 0.

    Raises:
        ConfigError: it is something else.
    """
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}={value!r} must be a finite number above 0.")
    return float(value)


def whole(name: str, value: int) -> int:
    """An integer, 1 or more.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}={value!r} must be an integer, 1 or more.")
    return value
