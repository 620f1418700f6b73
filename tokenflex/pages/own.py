"""Markup that templates take as it is."""


class Own(str):
    """Text of this package's own making, or escaped already, which templates don't escape again."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)
