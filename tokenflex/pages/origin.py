"""How results were made, as a page says it."""

from collections.abc import Mapping
from typing import Any

UNKNOWN = "not known: this was not recorded when the results were made"
VERSIONS = ("tokenflex", "torch", "transformers", "python")


def how_made(made: Mapping[str, Any] | None, further: Mapping[str, str] | None = None) -> tuple[tuple[str, str], ...]:
    """Pairs of a term and what is known of it; what was not recorded is said to be unknown.

    Args:
        made: what `tokenflex.profiling.surroundings.provenance` gave for the results; None where nothing was kept.
        further: terms of the page's own, such as the seed.
    """
    known: Mapping[str, Any] = made or {}
    versions = ", ".join(f"{name} {known[name]}" for name in VERSIONS if known.get(name))
    count = known.get("threads")
    threads = f", {count} thread{'s' * (count != 1)}" if count else ""
    hardware = f"{known['hardware']}{threads}; device {known.get('device', '')}" if known.get("hardware") else UNKNOWN
    command = known.get("command")
    if command == "":
        command = "called from Python"
    found = {
        "command": command or UNKNOWN,
        "date": known.get("date") or UNKNOWN,
        "hardware": hardware,
        "versions": versions or UNKNOWN,
    }
    return tuple((term, str(text)) for term, text in {**found, **(further or {})}.items())
