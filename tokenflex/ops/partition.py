"""Rows of different length in groups of similar length, so that a batch costs what its tokens cost."""

from collections.abc import Sequence

import numpy as np

CALL = 64
"""What one more call of a language model costs, in tokens: whatever a call takes besides the work on its tokens.

On one core of a CPU about ten were measured (a model of 8 layers and width 640, float32). A GPU can't run a call faster
than it reads the weights, which in bfloat16 takes as long as the arithmetic of as many tokens as it does operations per
byte read: some 75 to 150 on an A100 or H100 at half of their peak. Groups that save less aren't worth a call.
"""


def partition(lengths: Sequence[int], call: int = CALL, apart: int = 0) -> list[list[int]]:
    """The groups of rows that cost least, each padded to its longest row.

    A group costs its rows times the longest of them, plus ``call``; more than one group cost ``apart`` on top. Some
    groups of least cost are neighbours in order of length, so the best are found among those (dynamic programming over
    the different lengths; rows of equal length are never parted). They never cost more than all rows in one group, in
    tokens nor in anything that grows with the length of a row.

    Args:
        lengths: tokens of every row.
        call: tokens that one more group is worth.
        apart: tokens that not leaving all rows together is worth.

    Returns:
        Numbers of the rows of every group, ascending; groups of shorter rows first, and as few as are worth it.
    """
    every = list(range(len(lengths)))
    if not every:
        return []
    sizes, belongs, counts = np.unique(np.asarray(lengths, dtype=np.int64), return_inverse=True, return_counts=True)
    ends = _ends(sizes, counts, call)
    group = np.searchsorted(ends, belongs.reshape(-1), side="right")
    groups = [np.flatnonzero(group == i).tolist() for i in range(len(ends))]
    if len(groups) > 1 and cost(lengths, groups, call) + apart >= cost(lengths, [every], call):
        return [every]
    return groups


def cost(lengths: Sequence[int], groups: Sequence[Sequence[int]], call: int = CALL) -> int:
    """Tokens that groups are worth: rows times the longest of each, and ``call`` for each."""
    return sum(len(rows) * max(lengths[row] for row in rows) + call for rows in groups)


def _ends(sizes: np.ndarray, counts: np.ndarray, call: int) -> list[int]:
    """For ascending different lengths, behind which of them the groups of least cost end; of equal ones the fewest."""
    rows = np.concatenate([[0], counts.cumsum()])
    best = np.zeros((len(sizes) + 1, 2), dtype=np.int64)  # cost, groups
    begins = np.zeros(len(sizes) + 1, dtype=np.int64)
    for end in range(1, len(sizes) + 1):
        costs = best[:end, 0] + (rows[end] - rows[:end]) * sizes[end - 1] + call
        first = np.lexsort((best[:end, 1], costs))[0]
        best[end], begins[end] = (costs[first], best[first, 1] + 1), first
    ends, end = list[int](), len(sizes)
    while end:
        ends.append(end)
        end = int(begins[end])
    return ends[::-1]
