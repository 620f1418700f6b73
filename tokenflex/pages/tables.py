"""Tables that the reader can sort."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenflex.errors import InputError


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: what its head says.
        means: one short sentence, shown above the table; empty where the head says it all.
    """

    head: str
    means: str = ""


@dataclass(frozen=True)
class Cell:
    """What a cell says, and what it is sorted by.

    Attributes:
        value: the number that rows are sorted by; None sorts by the text. An empty text is always sorted last.
    """

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Row:
    """A line of a table; its first cell is its head.

    Attributes:
        group: a class of the style sheet that colours the line; empty for none.
    """

    cells: tuple[Cell, ...]
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a name, which screen readers say.

    Raises:
        InputError: a row has more or fewer cells than there are columns.
    """

    name: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise InputError(
                    f"a row of the table {self.name!r} has {len(row.cells)} cells for {len(self.columns)} columns; "
                    "give one cell for each column."
                )

    @property
    def explained(self) -> tuple[Column, ...]:
        """Columns whose heads need a sentence."""
        return tuple(column for column in self.columns if column.means)


def numbered(names: Sequence[str]) -> list[Cell]:
    """Names as cells that are sorted in the order given, so that sorting by them brings this order back."""
    return [Cell(name, float(place)) for place, name in enumerate(names)]
