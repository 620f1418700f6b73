"""How long scalers take beside other code for the same methods, on the same random features, in turns.

    python -m benchmarks.methods --beside published.py                        # every function of that file
    python -m benchmarks.methods --beside published.py --tokens 576 --batch 1

The file is yours: it holds one function per scaler, with the scaler's name (``-`` written as ``_``), that takes
``features`` (batch, tokens, width), ``attention`` (batch, tokens), ``keys`` (batch, tokens, 64), ``words`` (batch, 12,
width) and ``kept``, the number of tokens to keep. What it gives is not looked at.
"""

import argparse
import runpy
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

import tokenflex
from tokenflex.contracts import Grid, Instruction, VisualTokens
from tokenflex.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """Seconds of both, pair by pair.

    Attributes:
        method: name of the scaler.
        shape: (batch, tokens, kept).
        ours: seconds of processor time of the scaler.
        theirs: of the function beside it.
    """

    method: str
    shape: tuple[int, int, int]
    ours: list[float]
    theirs: list[float]

    def __str__(self) -> str:
        ratios = [a / b for a, b in zip(self.ours, self.theirs, strict=True)]
        batch, tokens, kept = self.shape
        return (
            f"| `{self.method}` | {batch} | {tokens} | {kept} | {1e3 * statistics.median(self.ours):.1f} "
            f"| {1e3 * statistics.median(self.theirs):.1f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f}) | {len(ratios)} |"
        )


def beside(path: str) -> dict[str, Callable[..., object]]:
    """The functions of the file at ``path`` that are called like an installed scaler.

    Raises:
        ConfigError: there is none.
    """
    known = {name.replace("-", "_"): name for name in tokenflex.scalers.names()}
    found = {known[name]: value for name, value in runpy.run_path(path).items() if name in known and callable(value)}
    if not found:
        raise ConfigError(f"{path} has no function called like a scaler; use one of {', '.join(sorted(known))}.")
    return found


def measured(name: str, other: Callable[..., object], batch: int, side: Grid, args: argparse.Namespace) -> Row:
    """One row: ``args.pairs`` pairs of calls, whose order alternates."""
    generator = torch.Generator().manual_seed(0)
    scaler = tokenflex.scalers.get(name).Config().build()
    counts = scaler.granularities(side)
    level = min(range(len(counts)), key=lambda level: abs(counts[level] - args.share * side.tokens))
    given = {
        "features": torch.randn(batch, side.tokens, args.width, generator=generator),
        "attention": torch.randn(batch, side.tokens, generator=generator).softmax(-1),
        "keys": torch.randn(batch, side.tokens, 64, generator=generator),
        "words": torch.randn(batch, 12, args.width, generator=generator),
    }
    words = Instruction(given["words"], torch.ones(batch, 12, dtype=torch.bool))
    features, attention, keys = (given[key][:, None] for key in ("features", "attention", "keys"))
    image = VisualTokens(features, side, attention=attention, keys=keys, instruction=words)
    calls = (partial(scaler.scale, image, level), partial(other, **given, kept=counts[level]))
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for call in calls:
            call()
        for pair in range(args.pairs):
            for which in (0, 1) if pair % 2 == 0 else (1, 0):
                begin = time.thread_time()
                calls[which]()
                seconds[which].append(time.thread_time() - begin)
    return Row(name, (batch, side.tokens, counts[level]), *seconds)


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """Every method of ``args.beside`` at every size, one thread."""
    torch.set_num_threads(1)
    for name, other in beside(args.beside).items():
        for tokens in args.tokens:
            height = next(n for n in range(int(tokens**0.5), 0, -1) if tokens % n == 0)
            for batch in args.batch:
                yield measured(name, other, batch, Grid(height, tokens // height), args)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", required=True, help="file with the other code's functions")
    parser.add_argument("--tokens", type=int, nargs="+", default=[576, 2880])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--share", type=float, default=0.25, help="of the tokens kept; the nearest level's is used")
    parser.add_argument("--pairs", type=int, default=7)
    args = parser.parse_args(argv)
    sys.stdout.write("| scaler | batch | tokens | kept | ours, ms | theirs, ms | ours / theirs | pairs |\n")
    sys.stdout.write("| --- | --- | --- | --- | --- | --- | --- | --- |\n")
    for row in rows(args):
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
