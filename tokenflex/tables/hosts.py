"""Which architectures are served: one row for each that transformers' image-text Auto class knows, found by trying."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from packaging.version import Version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tokenflex import catalog
from tokenflex.hosts.architectures import levels_of
from tokenflex.registry import hosts
from tokenflex.tables import marked_page
from tokenflex.tables.marked_page import markdown_table
from tokenflex.testing.host_checks import CHECKS, check_host
from tokenflex.testing.report import Report
from tokenflex.testing.zoo.hosts import ZOO

NEVER_ASKED = "its tiny host has no videos"
BEGIN, END = "<!-- table: tokenflex hosts --write -->", "<!-- end of table -->"
SIZES_BEGIN, SIZES_END = "<!-- table: sizes of images -->", "<!-- end of sizes of images -->"
SIZES_PAGE = "resolution.md"
"""Beside the page of the hosts' table."""
SIZES_HEADER = ("sizes", "setting of its processor", "architectures")
HEADER = ("architecture", "family", "laws kept", "not asked, or excepted", "refused")


@dataclass(frozen=True)
class HostRow:
    """One architecture.

    Attributes:
        excluded: law -> why it was not asked, or why the host itself breaks it.
        refused: why the architecture isn't served; None if it is.
    """

    model_type: str
    family: str | None = None
    laws_passed: int = 0
    laws_total: int = len(CHECKS)
    excluded: Mapping[str, str] = field(default_factory=dict)
    refused: str | None = None

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of ``HEADER``."""
        kept = "" if self.refused else f"{self.laws_passed} of {self.laws_total}"
        return (
            self.model_type,
            self.family or "",
            kept,
            "; ".join(f"{law}: {reason}" for law, reason in self.excluded.items()),
            self.refused or "",
        )


def architectures() -> list[str]:
    """Every ``model_type`` of ``AutoModelForImageTextToText`` that the installed transformers has itself, sorted."""
    return sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys() & CONFIG_MAPPING_NAMES.keys())


def refusal(model_type: str) -> str | None:
    """Why an architecture isn't served, without trying it."""
    names = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]
    kind: Any = getattr(transformers, names if isinstance(names, str) else names[0])
    if "mm_encoder_outputs" not in inspect.signature(kind.forward).parameters:
        return "it doesn't take pre-encoded images (mm_encoder_outputs)"
    needed = catalog.HOSTS_SINCE.get(model_type, "0")
    if Version(transformers.__version__).release < Version(needed).release:
        return f"it is served from transformers {needed} on"
    if model_type in hosts.names():
        return None
    return catalog.REFUSED_HOSTS.get(model_type, "unknown: not tried")


def probe(model_type: str) -> tuple[HostRow, Report | None]:
    """Try one architecture; (its row, the laws' report if it was tried)."""
    reason = refusal(model_type)
    if reason is not None:
        return HostRow(model_type, refused=reason), None
    tiny = ZOO[model_type]
    adapter = hosts.get(model_type)(tiny.build())
    report = check_host(adapter, tiny)
    excluded = {
        r.check: r.detail
        for r in report.results
        if r.outcome in ("skipped", "expected failure") and r.detail != NEVER_ASKED
    }
    never = sum(r.detail == NEVER_ASKED for r in report.results)
    row = HostRow(model_type, adapter.family, len(report.named("passed")), len(CHECKS) - never, excluded)
    return row, report


def probe_all(only: Sequence[str] = ()) -> Iterator[HostRow]:
    """Rows of all architectures, or of ``only`` some."""
    for model_type in only or architectures():
        yield probe(model_type)[0]


def markdown(rows: Sequence[HostRow]) -> str:
    """The table of hosts in Markdown, served architectures first."""
    ordered = sorted(rows, key=lambda row: (row.refused is not None, row.family or "", row.model_type))
    return markdown_table(HEADER, [row.cells() for row in ordered])


def renew(page: Path, rows: Sequence[HostRow]) -> None:
    """Put a table in place of the one in a page; see `marked_page.renew_page`."""
    served = sum(row.refused is None for row in rows)
    title = f"transformers {transformers.__version__}: {served} of {len(rows)} architectures served"
    marked_page.renew_page(page, BEGIN, END, f"{title}\n\n{markdown(rows)}")


def sizes() -> str:
    """A table of how images are made smaller before they are encoded, architectures of one kind in one row."""
    kinds: dict[tuple[str, str | None], list[str]] = {}
    for model_type in architectures():
        found = None if refusal(model_type) else levels_of(model_type)
        if found is not None:
            kinds.setdefault(found, []).append(model_type)
    rows = [(levels, setting or "none", ", ".join(names)) for (levels, setting), names in kinds.items()]
    return markdown_table(SIZES_HEADER, sorted(rows, key=lambda row: (-row[2].count(","), row[0])))


def renew_sizes(page: Path) -> None:
    """Put the table of sizes in place of the one in a page; see `marked_page.renew_page`."""
    served = sum(not refusal(name) and levels_of(name) is not None for name in architectures())
    title = f"transformers {transformers.__version__}: images of {served} architectures can be made smaller"
    marked_page.renew_page(page, SIZES_BEGIN, SIZES_END, f"{title}\n\n{sizes()}")
