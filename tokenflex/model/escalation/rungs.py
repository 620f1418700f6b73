"""The levels that a batch's images are tried at, pass by pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tokenflex.contracts import Decision, Tried


@dataclass(frozen=True)
class Rungs:
    """Of one row, coarse to fine.

    Attributes:
        images: numbers of the row's images in the batch.
        levels: per pass the level of each of them.
    """

    images: tuple[int, ...]
    levels: tuple[tuple[int, ...], ...]

    @property
    def last(self) -> int:
        """Number of the pass at the finest levels."""
        return len(self.levels) - 1


def rungs_of(rows: Sequence[int], starts: Sequence[int], ladder: Sequence[int]) -> dict[int, Rungs]:
    """Every row's passes, by its number; rows without images have none.

    Images of a row go on together: each to the ladder's next level, or, where its own is finer, it stays. Passes in
    which no image moves are left out.

    Args:
        rows: of every image.
        starts: every image's own level.
        ladder: ascending.
    """
    found: dict[int, Rungs] = {}
    for row in dict.fromkeys(rows):
        images = tuple(i for i, at in enumerate(rows) if at == row)
        own = tuple(starts[i] for i in images)
        steps = (own, *(tuple(max(level, rung) for level in own) for rung in ladder))
        found[row] = Rungs(images, tuple(dict.fromkeys(steps)))
    return found


@dataclass
class Climb:
    """How far every row has got.

    Attributes:
        rungs: by row.
        at: the pass that each row is at, by row.
        sure: the confidence of each pass so far, by row; None where it wasn't asked.
    """

    rungs: Mapping[int, Rungs]
    at: dict[int, int]
    sure: dict[int, list[float | None]]

    @classmethod
    def begin(cls, rungs: Mapping[int, Rungs], finest: bool = False) -> "Climb":
        """The climb with every row at its first pass or, with ``finest``, at its last."""
        return cls(rungs, {row: one.last if finest else 0 for row, one in rungs.items()}, {row: [] for row in rungs})

    def levels(self, images: int) -> list[int]:
        """The level of every image, at the pass its row is at."""
        found = [0] * images
        for row, one in self.rungs.items():
            for image, level in zip(one.images, one.levels[self.at[row]], strict=True):
                found[image] = level
        return found

    def below_the_last(self, rows: Sequence[int]) -> list[int]:
        """Those of ``rows`` that could go on to another pass."""
        return [row for row in rows if self.at[row] < self.rungs[row].last]

    def decisions(
        self, decided: Sequence[Decision], counts: Sequence[Sequence[int]], threshold: float
    ) -> tuple[Decision, ...]:
        """What was decided for every image, with all passes in it.

        Args:
            decided: for the start.
            counts: ``(images, levels)``, tokens of every level.
            threshold: that confidences were compared with.
        """
        found = list(decided)
        for row, one in self.rungs.items():
            passes = range(self.at[row] + 1 - len(self.sure[row]), self.at[row] + 1)
            for place, image in enumerate(one.images):
                levels = [one.levels[step][place] for step in passes]
                tried = tuple(
                    Tried(level, counts[image][level], sure, None if sure is None else threshold)
                    for level, sure in zip(levels, self.sure[row], strict=True)
                )
                tokens = sum(each.tokens for each in tried)
                found[image] = replace(decided[image], level=levels[-1], tokens=tokens, tried=tried)
        return tuple(found)
