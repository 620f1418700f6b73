"""A ``forward`` that shows the host's inputs: ``Trainer`` keeps the columns of a data set that it names."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, overload

from tokenflex.hosts import stock


class HostSignature:
    """Decorator of a model's ``forward``: looked up on an instance, its signature also names what its host takes.

    Args:
        function: takes ``self``, inputs of its own, and ``**inputs`` for the host.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[..., Any]: ...
    @overload
    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]: ...
    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        """The plain function on the class, a bound one with a signature of its own on an instance."""
        host = None if instance is None else instance.__dict__.get("_modules", {}).get("host")
        if host is None:
            return self.function if instance is None else self.function.__get__(instance, owner)
        function = self.function

        @functools.wraps(function)
        def bound(*args: Any, **kwargs: Any) -> Any:
            return function(instance, *args, **kwargs)

        setattr(bound, "__signature__", _joined(function, type(stock.base_of(host))))  # noqa: B010
        return bound


@functools.cache
def _joined(function: Callable[..., Any], host: type) -> inspect.Signature:
    """The function's parameters without ``self``, then the host's further ones by keyword."""
    own = list(inspect.signature(function).parameters.values())[1:]
    named = [one for one in own if one.kind is not one.VAR_KEYWORD]
    theirs = list(inspect.signature(getattr(host, "forward")).parameters.values())[1:]  # noqa: B009
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = {one.name for one in named}
    further = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for one in theirs
        if one.kind in kinds and one.name not in known
    ]
    rest = [one for one in theirs if one.kind is one.VAR_KEYWORD] or [one for one in own if one.kind is one.VAR_KEYWORD]
    return inspect.Signature([*named, *further, *rest])
