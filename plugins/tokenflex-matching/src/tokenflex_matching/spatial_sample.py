"""Places spread evenly over a grid."""

from tokenflex.contracts import Grid


def spread(grid: Grid, count: int) -> list[int]:
    """``count`` places of ``grid``, at most all of them, ascending.

    They lie in the middles of equal bands of rows, and in each of these rows in the middles of equal stretches; bands
    are about as high as stretches are wide. Some rows hold one place more than others where the count asks for it.
    """
    if count == 0:
        return []
    rows = round((count * grid.rows / grid.cols) ** 0.5)
    rows = min(max(rows, -(-count // grid.cols)), grid.rows, count)
    places: list[int] = []
    for row in range(rows):
        here = count * (row + 1) // rows - count * row // rows
        begin = _middle(row, rows, grid.rows) * grid.cols
        places += [begin + _middle(col, here, grid.cols) for col in range(here)]
    return places


def _middle(part: int, parts: int, length: int) -> int:
    return (2 * part + 1) * length // (2 * parts)
