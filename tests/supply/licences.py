"""Licences of what each extra installs: ``python -m tests.supply.licences`` renews the tables of docs/dependencies.md.

It reads the metadata of what is installed, so it is run where every extra is.
"""

import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tokenflex.tables.marked_page import markdown_table, renew_page

PAGE = Path(__file__).parents[2] / "docs" / "dependencies.md"
MARKS = "<!-- licences: begin, made by python -m tests.supply.licences -->", "<!-- licences: end -->"
EXTRAS = ("", "custom", "convert", "demo", "eval", "quickstart", "study", "serve", "ray")
"""What people install; the extras for development are nobody's dependency."""
FREE = re.compile(
    r"\b(MIT|MIT-CMU|BSD|0BSD|BSL-1\.0|Apache|ISC|ISCL|Zlib|CC0|PSF|Python Software Foundation|HPND|3-Clause)\b",
    re.IGNORECASE,
)
WEAK = re.compile(r"\b(MPL|Mozilla Public License)\b", re.IGNORECASE)
"""Copyleft of single files: using the library asks nothing of one's own code."""
VENDOR = re.compile(r"\bNVIDIA\b|Other/Proprietary", re.IGNORECASE)
"""CUDA's libraries, which torch brings along on Linux; builds of torch for the CPU don't."""


def closure(extra: str) -> dict[str, metadata.Distribution]:
    """Installed distributions that tokenflex needs with an extra (or without any), directly or not, by name."""
    found: dict[str, metadata.Distribution] = {}
    todo = [("tokenflex", (extra,) if extra else ())]
    seen: set[tuple[str, str]] = set()
    while todo:
        name, extras = todo.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if canonicalize_name(name) != "tokenflex":
            found[canonicalize_name(name)] = distribution
        for wanted in extras or ("",):
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            todo += list(_needed(distribution, wanted))
    return found


def _needed(distribution: metadata.Distribution, extra: str) -> Iterable[tuple[str, tuple[str, ...]]]:
    for line in distribution.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield canonicalize_name(requirement.name), tuple(sorted(requirement.extras))


def licence(distribution: metadata.Distribution) -> str:
    """As the distribution itself says: its expression, its classifiers, or the first line of its field."""
    told = distribution.metadata
    if told.get("License-Expression"):
        return told["License-Expression"]
    classifiers = [line.split(" :: ")[-1] for line in told.get_all("Classifier", []) if line.startswith("License ::")]
    named = [line for line in classifiers if line != "OSI Approved"]
    field = (told.get("License") or "").strip().splitlines()
    return "; ".join(named) or (field[0].strip() if field else "") or "not said"


def kind(said: str) -> str:
    """``free``, ``weak copyleft``, ``vendor``, or ``look``: a person must read it."""
    if VENDOR.search(said):
        return "vendor"
    if WEAK.search(said):
        return "weak copyleft"
    return "free" if FREE.search(said) else "look"


READ = {
    "cuda-toolkit": "vendor",  # a package of dependencies only, of NVIDIA
    "nvidia-cusparselt-cu13": "vendor",
    "nvidia-cusparselt-cu12": "vendor",
}
"""Read by a person, because their metadata say nothing that is known."""


def rows() -> list[tuple[str, str, str, str]]:
    """(distribution, licence, kind, needed by), sorted; a distribution of the core isn't listed again."""
    core = closure("")
    needed: dict[str, list[str]] = {name: ["tokenflex"] for name in core}
    distributions = dict(core)
    for extra in filter(None, EXTRAS):
        for name, distribution in closure(extra).items():
            if name not in core:
                distributions[name] = distribution
                needed.setdefault(name, []).append(f"[{extra}]")
    said = {name: licence(distribution) for name, distribution in distributions.items()}
    return [(name, said[name], READ.get(name) or kind(said[name]), ", ".join(needed[name])) for name in sorted(needed)]


def main() -> int:
    """Renew the page; the status tells whether a licence must be read by a person first."""
    found = rows()
    renew_page(PAGE, *MARKS, markdown_table(("Distribution", "Licence, as it says itself", "Kind", "Needed by"), found))
    unread = [f"{name}: {said}" for name, said, sort, _ in found if sort == "look"]
    sys.stderr.write("".join(f"to be read by a person: {line}\n" for line in unread))
    return 1 if unread else 0


if __name__ == "__main__":
    raise SystemExit(main())
