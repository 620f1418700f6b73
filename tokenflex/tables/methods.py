"""What every installed method needs, is and costs, found by trying it."""

import datetime
import inspect
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenflex import registry
from tokenflex.contracts import Component, Grid, Instruction, Router, ScaledTokens, Scaler, VisualTokens
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.tables import marked_page
from tokenflex.testing.conformance import check_component
from tokenflex.testing.report import Report

BEGIN, END = "<!-- table: tokenflex plugins --write -->", "<!-- end of table -->"
GRID, VIEWS, DIM, KEYS, WORDS = Grid(24, 24), (1, 5), 4096, 1024, 32
"""One tile of CLIP-L/14-336 and five of them (576 and 2880 tokens), a 7B model's width, a question's words."""
RUNS, FEWEST, SECONDS = 9, 3, 5.0
"""Runs that are timed; fewer where they take longer than so many seconds in all."""
COST = ("MFLOPs 576", "MFLOPs 2880", "ms 576", "ms 2880")
SCALERS = ("scaler", "from", "needs", "trained", "exact counts", "differentiable", "checks", *COST, "papers")
ROUTERS = ("router", "from", "needs", "trained", "checks", *COST, "papers")
OTHERS = ("kind", "name", "from", "trained", "checks", "what it does")
PAPER = re.compile(r"\b\d{4}\.\d{5}\b")


@dataclass(frozen=True)
class Cost:
    """One image through a method.

    Attributes:
        flops: of matrix products and convolutions; what only adds and compares counts nothing.
        times: milliseconds of each run.
        ratio: median time by that of average pooling to the same level, run in turns.
    """

    flops: int
    times: tuple[float, ...]
    ratio: float

    def cells(self) -> tuple[str, str]:
        """(MFLOPs, milliseconds with spread and ratio)."""
        low, middle, high = min(self.times), statistics.median(self.times), max(self.times)
        return f"{self.flops / 1e6:.1f}", f"{middle:.2f} ({low:.2f}-{high:.2f}; {self.ratio:.1f}x)"


def tables(tick: Callable[[str], None]) -> Iterator[str]:
    """Title and tables as Markdown.

    Args:
        tick: called with every name before it is tried.
    """
    yield _title()
    scalers, routers = [_rows(kind, tick) for kind in (registry.scalers, registry.routers)]
    yield marked_page.markdown_table(SCALERS, scalers)
    yield marked_page.markdown_table(ROUTERS, routers)
    yield marked_page.markdown_table(
        OTHERS, [row for kind in (registry.voters, registry.policies) for row in _plain(kind)]
    )


def renew(page: Path, tick: Callable[[str], None]) -> None:
    """Put the tables in place of those in a page; see `marked_page.renew_page`."""
    marked_page.renew_page(page, BEGIN, END, "\n".join(tables(tick)))


def _title() -> str:
    return (
        f"{datetime.date.today():%Y-%m-%d}, {platform.machine()} CPU with {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {sys.version.split()[0]}; float32, "
        f"width {DIM}. Milliseconds: median of {RUNS} runs ({FEWEST} of slow methods) after a warm-up "
        "(fastest-slowest; times average pooling, run in turns).\n"
    )


def _rows(kind: registry.Registry[Any], tick: Callable[[str], None]) -> list[Sequence[str]]:
    found: list[Sequence[str]] = []
    for name in kind.names():
        listing = kind.listing(name)
        if listing.state != "ok":
            continue
        tick(name)
        owner = kind.get(name)
        report = check_component(owner.Config())
        part = _built(owner)
        costs = [_cost(part, views).cells() for views in VIEWS]
        facts = [*_facts(part), *(_promises(report) if isinstance(part, Scaler) else ()), _kept(report)]
        cells = [cost[i] for i in (0, 1) for cost in costs]
        found.append([f"`{name}`", listing.provider, *facts, *cells, _papers(owner)])
    return found


def _plain(kind: registry.Registry[Any]) -> Iterator[Sequence[str]]:
    for name in kind.names():
        listing = kind.listing(name)
        if listing.state == "ok":
            part = _built(kind.get(name))
            report = check_component(part.config)
            yield [kind.kind, f"`{name}`", listing.provider, _yes(_trained(part)), _kept(report), listing.summary]


def _built(owner: type[Component]) -> Any:
    torch.manual_seed(0)
    levels = AveragePoolScaler.Config().build()
    grids = [grid for grid in levels.layouts(GRID) if isinstance(grid, Grid)]
    segments = (*grids, Grid(1, WORDS))
    return owner.Config().build(dim=DIM, grid=GRID, num_levels=levels.num_levels, segments=segments).eval()


def _facts(part: Any) -> tuple[str, str]:
    return ", ".join(["features", *sorted(part.needs)]), _yes(_trained(part))


def _trained(part: Component) -> bool:
    return any(True for _ in part.parameters())


def _promises(report: Report) -> tuple[str, str]:
    passed = report.named("passed")
    return _yes("counts-known-in-advance" in passed), _yes("gradients-flow" in passed)


def _kept(report: Report) -> str:
    skipped = len(report.named("skipped"))
    asked = f" ({skipped} not asked)" if skipped else ""
    return f"{len(report.named('passed'))} of {len(report.results)}{asked}"


def _papers(owner: type) -> str:
    told = f"{inspect.getdoc(owner) or ''} {inspect.getdoc(inspect.getmodule(owner)) or ''}"
    return ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in dict.fromkeys(PAPER.findall(told)))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _image(views: int, grid: Grid = GRID) -> VisualTokens:
    """Random tokens whose neighbours resemble one another, as an image's do."""
    noise = torch.Generator().manual_seed(views)
    coarse = torch.randn(views, DIM, grid.rows // 4, grid.cols // 4, generator=noise)
    smooth = torch.nn.functional.interpolate(coarse, (grid.rows, grid.cols), mode="bilinear")
    features = smooth.flatten(2).mT + 0.3 * torch.randn(views, grid.tokens, DIM, generator=noise)
    words = Instruction(torch.randn(WORDS, DIM, generator=noise), torch.ones(WORDS, dtype=torch.bool))
    return VisualTokens(
        features.contiguous(),
        grid,
        attention=torch.randn(views, grid.tokens, generator=noise).mul(2).softmax(-1),
        keys=torch.randn(views, grid.tokens, KEYS, generator=noise),
        instruction=words,
    )


@torch.no_grad()
def _cost(part: Scaler | Router, views: int) -> Cost:
    """A scaler to the level that keeps nearest to a quarter, of its image; a router over the published pyramid."""
    image, pool = _image(views), AveragePoolScaler.Config().build()
    if isinstance(part, Scaler):
        counts = part.granularities(GRID)
        level = min(range(part.num_levels), key=lambda i: abs(counts[i] - GRID.tokens // 4))
        sample = _image(views, part.image_grids(GRID)[level])
        return _timed(lambda: part.scale(sample, level), lambda: pool.scale(image, 2))
    pyramid: list[ScaledTokens] = [replace(level, attention=image.attention) for level in pool.pyramid(image)]
    words = image.instruction
    assert words is not None
    return _timed(lambda: part(pyramid, words), lambda: pool.scale(image, 2))


def _timed(run: Callable[[], Any], baseline: Callable[[], Any]) -> Cost:
    with FlopCounterMode(display=False) as counter:
        run()
    baseline()
    ours: list[float] = []
    theirs: list[float] = []
    while len(ours) < FEWEST or (len(ours) < RUNS and sum(ours) < 1e3 * SECONDS):
        for call, times in ((run, ours), (baseline, theirs)):
            started = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - started))
    return Cost(counter.get_total_flops(), tuple(ours), statistics.median(ours) / statistics.median(theirs))
