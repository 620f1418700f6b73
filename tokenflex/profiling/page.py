"""A profile as one page of HTML: from how many dropped visual tokens on routing pays."""

import re
from collections.abc import Sequence

from matplotlib.axes import Axes

from tokenflex.pages import Cell, Column, Plot, Row, Series, Table, drawn_plot, how_made, numbered, rendered
from tokenflex.pages.plot import PALETTE
from tokenflex.profiling.break_even import BreakEven
from tokenflex.profiling.lines import Rows, answer_tokens, costs, sentences, times, title
from tokenflex.profiling.result import BatchProfile, Profile

NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)(?:\*| / .*)?")
"""A cell that is sorted by its number: ``12``, ``3.2*`` or ``12 / 15``."""
NAMED = 2
"""Cases that the sentence names, at most."""
KEY = (
    Series("saved by dropping tokens, fitted through the forced levels, with its 95 % interval", "blue", "-", ()),
    Series("saved at each forced level, measured", "grey", "o", ()),
    Series("what the decision costs", "red", "", ()),
    Series("break-even: routing pays right of it", "green", "D", ()),
)
"""What the marks of the images mean."""
MEANS = {
    "setting": "what ran; sorting by it brings the first order back",
    "visual tokens": "that the language model sees, per image, mean",
    "tower": "ms of the vision tower",
    "decision": "ms of router, voter and policy, and of the levels that the router looks at",
    "scaler": "ms of making the chosen level",
    "splice": "ms of shortening the prompt around the chosen tokens",
    "prefill": "ms of the host's forward on the prompt; *: with the vision tower inside",
    "rest": "ms to the first token less the stages before it",
    "first token": "ms of one generate call for one token: median / 95th percentile",
    "per token": "ms of each further token",
    "levels": "forced, chosen or given; 5x0 3x4: five images at level 0, three at level 4",
    "prompt": "tokens of the batch's rows, padding included",
    "peak MiB": "the most that is live at once: weights, batch and all else",
    "working MiB": "the peak less what was there before",
    "KV cache MiB": "keys and values that the answer leaves",
    "GFLOP": "work of matrix products, convolutions and attention; *: with the vision tower inside",
}
"""What columns say, by the head up to its comma."""


def profile_html(profile: Profile) -> str:
    """A profile as a whole HTML page."""
    batches = [
        {
            "title": title(batch),
            "times": _table(f"Time, {title(batch)}", times(batch), "ms of one generate call: median / 95th percentile"),
            "costs": _table(f"Memory and work, {title(batch)}", costs(batch), ""),
            "sentences": sentences(batch),
        }
        for batch in profile.batches
    ]
    return rendered(
        "profiling/profile.html.jinja",
        opening=sentence(profile),
        plots=[image(batch, even) for batch, even in _cases(profile)],
        key=KEY,
        made=made(profile),
        warnings=profile.warnings,
        batches=batches,
    )


def sentence(profile: Profile) -> str:
    """Where routing pays, in one sentence."""
    cases = _cases(profile)
    if len(cases) == 1:
        return _alone(*cases[0])
    pays = [(batch, even) for batch, even in cases if even.verdict == "gain"]
    open_ones = sum(even.verdict == "not settled" for _, even in cases)
    rest = f"; {open_ones} of them the runs don't settle" if open_ones else ""
    if not pays:
        return f"Routing pays in none of the {len(cases)} cases measured{rest}."
    least, most = (f"{100 * side(_share(even) for _, even in pays):.0f}" for side in (min, max))
    shares = f"{least} %" if least == most else f"{least} to {most} %"
    from_on = f"where it drops more than {shares} of the visual tokens"
    if len(pays) == len(cases):
        every = "both" if len(cases) == 2 else f"all {len(cases)}"
        return f"Routing pays in {every} cases measured, {from_on}."
    named = f" ({'; '.join(_case(batch, even) for batch, even in pays)})" if len(pays) <= NAMED else ""
    return f"Routing pays in {len(pays)} of the {len(cases)} cases measured{named}, {from_on}{rest}."


def image(batch: BatchProfile, even: BreakEven) -> Plot:
    """What dropping visual tokens saves, beside what the decision costs."""
    most = max(even.finest - even.coarsest, 1.0)
    finest = even.intercept + even.slope * even.finest
    levels = [
        (even.finest - one.tokens, 1e3 * (finest - answer.end_to_end.median))
        for one in batch.settings
        if one.kind == "level"
        for answer in one.answers
        if answer.new_tokens == even.new_tokens
    ]

    def draw(axes: Axes, narrow: bool) -> None:
        blue, red = PALETTE["blue"][0], PALETTE["red"][0]
        ends = [[0.0, 1e3 * slope * most] for slope in (even.slope_low, even.slope_high, even.slope)]
        axes.fill_between([0.0, most], ends[0], ends[1], color=blue, alpha=0.2, linewidth=0)
        axes.plot([0.0, most], ends[2], color=blue, linewidth=1.5)
        axes.axhline(1e3 * even.decision, color=red, linewidth=1.5, linestyle="--")
        axes.plot(*zip(*levels, strict=True), "o", color=PALETTE["grey"][0], markersize=5)
        if even.kept is not None and even.dropped is not None:
            axes.plot([even.dropped], [1e3 * even.decision], "D", color=PALETTE["green"][0], markersize=7)

    case = _case(batch, even)
    return drawn_plot(
        draw,
        across="visual tokens dropped per image",
        up="ms per batch",
        label=f"{case}: {even.in_words}",
        title=f"{case[0].upper()}{case[1:]}: {_short(even)}",
        both=False,
    )


def made(profile: Profile) -> tuple[tuple[str, str], ...]:
    """How the profile was measured, as pairs of a name and a value."""
    where = profile.surroundings
    parts_dtype = f", parts {' and '.join(where.parts_dtype)}" if where.parts_dtype else ""
    known = {**where.to_dict(), "hardware": where.device_name, "command": profile.command}
    further = {
        "model": f"{where.host} of {where.parameters / 1e6:.1f} M parameters with {', '.join(where.parts.values())}",
        "asked": profile.request or "batches given from Python",
        "type": f"{' and '.join(where.dtype)}{parts_dtype}; attention {' and '.join(where.attention)}",
        "runs": f"{profile.runs} per setting after {profile.warm_up} for warming up; settings take turns",
        "seed": "answers are greedy and need none; intervals always draw the same rounds",
    }
    return how_made(known, further)


def _cases(profile: Profile) -> list[tuple[BatchProfile, BreakEven]]:
    return [(batch, even) for batch in profile.batches for even in batch.break_even]


def _case(batch: BatchProfile, even: BreakEven) -> str:
    return f"batch of {batch.rows}, {answer_tokens(even.new_tokens)} per answer"


def _alone(batch: BatchProfile, even: BreakEven) -> str:
    case, most = _case(batch, even), even.finest - even.coarsest
    if even.dropped is None or even.kept is None:
        saved = 1e3 * even.slope * most
        can = f"dropping all {most:.0f} visual tokens that can be dropped saves {saved:.3g} ms"
        return f"Routing does not pay here ({case}): the decision takes {1e3 * even.decision:.3g} ms and {can}."
    told = f"when it drops more than {even.dropped:.0f} of {even.finest:.0f} visual tokens"
    if even.verdict == "not settled":
        return f"The runs don't settle whether routing pays here ({case}); by their medians it does {told}."
    return f"Routing pays {told} ({case})."


def _short(even: BreakEven) -> str:
    if even.dropped is None or even.kept is None:
        return "no gain"
    told = f"{even.dropped:.0f} of {even.finest:.0f} tokens dropped"
    return f"not settled, by the medians from {told} on" if even.verdict == "not settled" else f"pays from {told} on"


def _share(even: BreakEven) -> float:
    return (even.dropped or 0.0) / even.finest


def _table(name: str, rows: Rows, whole: str) -> Table:
    names = numbered([cells[0] for cells in rows.body])
    body = tuple(Row((names[i], *map(_cell, cells[1:])), _group(cells[0])) for i, cells in enumerate(rows.body))
    return Table(name, _columns(rows.head, whole), body)


def _columns(heads: Sequence[str], whole: str) -> tuple[Column, ...]:
    """Heads that begin alike are explained once."""
    found, told = [], set[str]()
    for head in heads:
        short = head.partition(",")[0]
        means = MEANS.get(short, whole)
        found.append(Column(head, "" if means in told else means))
        told.add(means)
    return tuple(found)


def _cell(text: str) -> Cell:
    number = NUMBER.fullmatch(text)
    return Cell(text, float(number[1]) if number else None)


def _group(name: str) -> str:
    return "router" if name == "routed" else ""
