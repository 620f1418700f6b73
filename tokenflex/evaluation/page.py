"""An evaluation as one page of HTML that needs nothing else."""

from collections.abc import Sequence
from typing import Any

from tokenflex.errors import DataError
from tokenflex.evaluation import drawing
from tokenflex.evaluation.drawing import Cells
from tokenflex.evaluation.lines import Line, facts, header, setting_lines
from tokenflex.evaluation.plot import pareto
from tokenflex.evaluation.promised import cells_of
from tokenflex.evaluation.records import Evaluation, Record, Shown
from tokenflex.evaluation.settings import group_of
from tokenflex.evaluation.summary import Summary
from tokenflex.pages import (
    Card,
    Cell,
    Column,
    Compared,
    Gallery,
    Row,
    Score,
    Table,
    how_made,
    numbered,
    opening,
    rendered,
)

CHOOSING = ("router", "budget", "escalate")
"""Groups that the page may open with, the first that was run."""
NEAREST = (*CHOOSING, "random", "level", "scaler")
"""Groups of which one answers the gallery's questions."""
MEANS = {
    "setting": "what ran; sorting by it brings the first order back",
    "score": "mean over questions, by the metric named above",
    "95 %": "interval of the score over samples of questions (bootstrap; Wilson's for scores of 0 and 1 only)",
    "tokens": "visual tokens that the language model saw per question, mean",
    "of finest": "share of the visual tokens that there are without TokenFlex",
    "against finest": "the score less the finest level's on the same questions",
    "regret": "score that the best possible choices would add at the same number of tokens",
    "tokens too many": "tokens that the best possible choices would save at the same score",
    "passes": "of the language model per question, mean; the tokens of all passes are counted",
    "tokens wasted": "those of all passes but the last",
}
"""What the columns of the main table say."""
SORTED = ("score", "score_ci95", "tokens", "share", "minus_finest", "regret", "regret_tokens", "passes", "wasted")
"""Entries of a summary that the columns after the first are sorted by."""


def evaluation_html(summary: Summary, evaluation: Evaluation) -> str:
    """The page.

    Raises:
        DataError: an image of the gallery can't be read.
    """
    shown = shown_setting(evaluation)
    return rendered(
        "evaluation/report.html.jinja",
        opening=sentence(summary),
        facts=facts(summary),
        plot=pareto(summary),
        made=made(summary, evaluation),
        settings=_settings(summary),
        kinds=_kinds(summary),
        choices=_choices(summary),
        shown=shown,
        gallery=Gallery(cards(evaluation, shown)),
    )


def sentence(summary: Summary) -> str:
    """What came out, in one sentence: the router's result, or the nearest to it that was run."""
    settings, levels = summary["settings"], summary["levels"]
    finest, coarsest = f"level:{levels - 1}", "level:0"
    routed = [name for group in CHOOSING for name in settings if group_of(name) == group]
    pair = coarsest in settings and finest in settings and levels > 1
    name = routed[0] if routed else coarsest if pair else next(iter(settings))
    entry = settings[name]
    interval = _interval(entry["score_ci95"], summary)
    shown = Score(name, entry["score"], entry["tokens"], interval, entry["share"])
    compared = None
    if name != finest and finest in settings:
        whole = settings[finest]["tokens"]
        share = entry["tokens"] / whole if whole else None
        compared = Compared(share, entry["minus_finest"], _interval(entry["minus_finest_ci95"], summary))
    return opening(shown, compared, questions=summary["samples"], levels=levels, routed=bool(routed))


def made(summary: Summary, evaluation: Evaluation) -> list[tuple[tuple[str, str], ...]]:
    """How the answers were made, every way of it once."""
    drawn = summary["bootstrap"]
    seeds = {
        "seed": f"answers are greedy and need none; {drawn['resamples']} bootstrap draws of the intervals: "
        f"{drawn['seed']}"
    }
    return [how_made(one, seeds) for one in evaluation.made or [None]]


def shown_setting(evaluation: Evaluation) -> str:
    """The setting of the gallery: the router, or what comes nearest to it."""
    names = list(evaluation.records)
    for group in NEAREST:
        found = [name for name in names if group_of(name) == group]
        if found:
            return found[-1] if group == "level" else found[0]
    return names[0]


def cards(evaluation: Evaluation, setting: str) -> tuple[Card, ...]:
    """The questions whose images were kept, as a setting answered them.

    Raises:
        DataError: an image can't be read.
    """
    finest = evaluation.records.get(f"level:{evaluation.manifest['levels'] - 1}")
    found = []
    for shown in evaluation.samples:
        if not shown.images:
            continue
        question, record = shown.question, evaluation.records[setting][shown.question.place]
        try:
            images = tuple(
                drawing.seen(content, kept, _alt(shown, record, place))
                for place, (content, kept) in enumerate(zip(shown.images, _cells(record), strict=False))
            )
        except DataError as error:
            raise DataError(f"{evaluation.folder}: question {question.place}: {error}") from error
        answer = record.answer or "(nothing)"
        other = (finest[question.place].answer or "(nothing)") if finest else None
        found.append(
            Card(question.text, answer, question.kind, tuple(record.levels), record.score, images,
                 _notes(shown, record, other))
        )  # fmt: skip
    return tuple(sorted(found, key=lambda card: card.kind))


def _notes(shown: Shown, record: Record, finest: str | None) -> tuple[str, ...]:
    question = shown.question
    told = [f"expected: {', '.join(dict.fromkeys(question.references))}"]
    if record.score < 1 and finest is not None:
        told.append(f"the finest level answers: {finest}")
    kind = f"{question.kind} · " if question.kind else ""
    score = "" if record.score in (0, 1) else f" · score {record.score:.2f}"
    levels = ", ".join(map(str, record.levels)) or "none"
    return (*told, f"{kind}level {levels} · {record.tokens} of {record.of} visual tokens{score}")


def _alt(shown: Shown, record: Record, place: int) -> str:
    """What is seen, as far as the data tell, and what was chosen."""
    count = len(shown.images)
    which = f"Image {place + 1} of {count}" if count > 1 else "Image"
    level = f"level {record.levels[place]}" if place < len(record.levels) else "no level"
    found = f"{which} that is asked about: {shown.question.text.rstrip('. ')}"
    return f"{found}. Chosen: {level}, {record.tokens} of {record.of} visual tokens of the question; lines part them."


def _settings(summary: Summary) -> Table:
    heads, shown, entries = header(summary), setting_lines(summary), _entries(summary)
    names = numbered([line.name for line in shown])
    rows = []
    for place, (line, entry) in enumerate(zip(shown, entries, strict=True)):
        keys = SORTED[: len(line.cells) - 1]
        cells = [Cell(text, _number(entry.get(key))) for text, key in zip(line.cells[1:], keys, strict=True)]
        rows.append(Row((names[place], *cells), line.group))
    return Table("Settings", tuple(Column(head, MEANS[head]) for head in heads), tuple(rows))


def _kinds(summary: Summary) -> Table | None:
    if not summary["kinds"]:
        return None
    columns = [Column(f"{kind} ({count})") for kind, count in summary["kinds"].items()]
    return _further("Score by kind", columns, [(line, line.kinds) for line in setting_lines(summary)])


def _choices(summary: Summary) -> Table | None:
    chosen = [line for line in setting_lines(summary) if line.chosen]
    if not chosen:
        return None
    count = max(summary["levels"], *(len(line.chosen) for line in chosen))  # fewer were counted without fixed levels
    found = [(line, tuple(map(str, (*line.chosen, *[0] * (count - len(line.chosen)))))) for line in chosen]
    return _further("Levels chosen", [Column(f"level {level}") for level in range(count)], found)


def _further(name: str, columns: Sequence[Column], found: Sequence[tuple[Line, tuple[str, ...]]]) -> Table:
    """A table with a line per setting, all cells of it numbers."""
    names = numbered([line.name for line, _ in found])
    rows = [
        Row((names[place], *(Cell(text, float(text)) for text in texts)), line.group)
        for place, (line, texts) in enumerate(found)
    ]
    return Table(name, (Column("setting"), *columns), tuple(rows))


def _entries(summary: Summary) -> list[dict[str, Any]]:
    """Every setting's entry of the summary, in the order of `tokenflex.evaluation.lines.setting_lines`."""
    found = [*summary["settings"].values(), *summary["shuffled"].values()]
    return [*found, summary["oracle"]] if summary["oracle"] else found


def _number(value: Any) -> float | None:
    return value[0] if isinstance(value, list) else value


def _interval(ends: Sequence[float], summary: Summary) -> tuple[float, float] | None:
    """The ends of a confidence interval; None where one question can't tell."""
    return (ends[0], ends[1]) if summary["samples"] > 1 else None


def _cells(record: Record) -> list[Cells | None]:
    found = cells_of(record.cells, f"question {record.place}")
    return [None] * len(record.levels) if found is None else [*found]
