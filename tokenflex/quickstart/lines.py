"""What the screen and the page both say of a quickstart."""

from typing import Any

from tokenflex.quickstart.images import COARSE_KINDS, FINE_KINDS

AT = "at_the_routers_tokens"
"""Key, in a router's that sees less: what it does at a price that leaves it the router's tokens, or fewer."""
KINDS = (*FINE_KINDS, *COARSE_KINDS)
SETTINGS = (
    ("smaller_image", "smaller image", "s", "grey"),
    ("router", "router", "*", "red"),
    ("random_router", "random router", "x", "amber"),
    ("router_without_image", "router, no image", "x", "brown"),
    ("router_without_question", "router, no question", "+", "lime"),
    ("level_per_kind", "level per kind", "s", "ink"),
    ("reconstruction_router", "reconstruction", "P", "blue"),
    ("random_reconstruction", "random reconstr.", "+", "cyan"),
    ("escalate", "escalate", "^", "purple"),
    ("router_escalate", "router, escalate", "v", "pink"),
    ("oracle", "oracle", "D", "green"),
)
"""Key of the result, name in tables, marker and colour of `tokenflex.pages`; those without an entry weren't run."""


def rows(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The table's lines: a name and a summary each."""
    levels = [(f"level {i}", summary) for i, summary in enumerate(result["levels"])]
    return [*levels, *((name, result[key]) for key, name, _, _ in SETTINGS if key in result)]


def seeing_less(result: dict[str, Any]) -> list[str]:
    """What routers that see less do with as many tokens as the router has."""
    found: list[str] = []
    for key, name, _, _ in SETTINGS:
        priced = result.get(key, {}).get(AT)
        if priced is not None:
            found.append(
                f"{name[0].upper()}{name[1:]}: at a price per token that leaves it no more than the router's "
                f"{result['router']['tokens_mean']:.1f} tokens ({priced['tokens_mean']:.1f}) it answers "
                f"{priced['accuracy']:.3f} right, the router {result['router']['accuracy']:.3f}."
            )
    return found


def promises(result: dict[str, Any]) -> list[str]:
    """What was promised of each way of escalating, and what came of it."""
    found: list[str] = []
    for key, name, _, _ in SETTINGS:
        summary = result.get(key, {})
        told = summary.get("escalate")
        if told is None:
            continue
        start = "no router was asked" if key == "escalate" else "the router's level is the first that is tried"
        found.append(
            f"{name[0].upper()}{name[1:]}: {start}. Calibrated on {told['calibrated']['rows']} other questions: with "
            f"probability {told['confidence']:g} at most {100 * told['risk']:g} % of the answers differ from the "
            f"finest level's. On these questions {100 * summary['differs_from_finest']:.1f} % did, with "
            f"{summary['passes_mean']:.2f} passes of the language model per question."
        )
    return found
