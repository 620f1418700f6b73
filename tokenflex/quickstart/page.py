"""A quickstart as one page of HTML that needs nothing else."""

import io
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from tokenflex.contracts import Grid
from tokenflex.ops.pooling import Windows
from tokenflex.pages import (
    Card,
    CardImage,
    Cell,
    Column,
    Compared,
    Gallery,
    Overlay,
    Plot,
    Row,
    Score,
    Series,
    Table,
    how_made,
    numbered,
    opening,
    points,
    rendered,
)
from tokenflex.quickstart.evaluate import RESAMPLES, Exam, GradedAnswers
from tokenflex.quickstart.images import CELL, FINE_KINDS, SENTENCES, scene_in_words
from tokenflex.quickstart.lines import KINDS, SETTINGS, promises, rows, seeing_less

Draw = Callable[[Image.Image, int], tuple[Image.Image, Overlay]]
"""From an image and a level to the image as it is shown, and its tokens."""
SHOWN, WRONG = 24, 12
"""Questions of the gallery: the first of all kinds, and at most so many wrong ones besides."""
MEANS = {
    "setting": "what ran; sorting by it brings the first order back",
    "accuracy": "share of the questions that were answered right",
    "against finest": "the accuracy less the finest level's on the same questions",
    "visual tokens": "per image, mean, of all passes of the language model",
    "of finest": "share of the finest level's visual tokens",
    "tower's work": "FLOPs of the vision tower, of those at the finest level",
    "digit": "accuracy of 'Which digit is red?', among eight, four or two digits",
    "ink": "accuracy of 'Which colour is the digit 3?', among eight, four or two digits",
    "photo": "accuracy of 'Which photograph is in the background?'",
    "wash": "accuracy of 'Which colour is the photograph washed in?'",
    "count": "accuracy of 'How many digits are there: none, one or many?'",
}
"""What the columns of the main table say."""


def quickstart_html(
    result: dict[str, Any], exam: Exam, finest: GradedAnswers, routed: GradedAnswers, draw: Draw
) -> str:
    """The page.

    Args:
        result: what ``report.json`` holds; one that an older version wrote does, too.
        finest, routed: answers to the exam.
        draw: what an image looks like at a level.
    """
    return rendered(
        "quickstart/report.html.jinja",
        result=result,
        opening=sentence(result),
        plot=plot(result),
        made=made(result),
        fine_kinds=FINE_KINDS,
        accuracy=_accuracy(result),
        choices=_choices(result, "kind", "What the router chose"),
        spacings=_choices(result, "spacing", "What the router chose, by the room around a digit"),
        promises=[*seeing_less(result), *promises(result)],
        gallery=Gallery(cards(exam, finest, routed, draw)),
        times=_times(result),
    )


def sentence(result: dict[str, Any]) -> str:
    """What came out, in one sentence."""
    levels, router = result["levels"], result.get("router")
    entry, finest = router or levels[0], levels[-1]
    difference = entry.get("minus_finest", entry["accuracy"] - finest["accuracy"])
    share = entry["tokens_mean"] / finest["tokens_mean"] if finest["tokens_mean"] else None
    shown = Score(
        "router" if router else "level 0", entry["accuracy"], entry["tokens_mean"], _ends(entry, "accuracy"), share
    )
    compared = Compared(share, difference, _ends(entry, "minus_finest"))
    return opening(
        shown, compared, questions=result["questions"], levels=len(levels), routed=bool(router), word="accuracy"
    )


def made(result: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """How the results were made, as pairs of a name and a value."""
    seed = result["seed"]
    drawn = (
        f"; also of the {RESAMPLES} bootstrap draws of the intervals" if _ends(result["levels"][-1], "accuracy") else ""
    )
    further = {
        "seed": f"{seed}, of data, weights and training{drawn}",
        "time": f"{sum(result['seconds'].values()):.0f} s in all",
    }
    return how_made(result.get("made"), further)


def plot(result: dict[str, Any]) -> Plot:
    """The plot of accuracy against visual tokens."""
    found = [_series("fixed levels", "grey", "o", result["levels"], "-")]
    found += [_series(name, colour, marker, [result[key]]) for key, name, marker, colour in SETTINGS if key in result]
    label = "Accuracy against visual tokens per image; the table of settings has the numbers."
    return points(found, across="visual tokens per image, mean", up="accuracy", label=label)


def cards(exam: Exam, finest: GradedAnswers, routed: GradedAnswers, draw: Draw) -> tuple[Card, ...]:
    """The first questions of each kind, then the first other wrong ones, as routed, with the chosen grid."""
    per_kind = -(-SHOWN // len(KINDS))
    places = [
        i for kind in KINDS for i in [i for i, (_, question) in enumerate(exam) if question.kind == kind][:per_kind]
    ]
    wrong = [i for i, right in enumerate(routed.right) if not right and i not in places][:WRONG]
    return tuple(_card(exam, i, finest, routed, draw) for i in [*places, *wrong])


def _card(exam: Exam, i: int, finest: GradedAnswers, routed: GradedAnswers, draw: Draw) -> Card:
    (scene, question), level = exam[i], int(routed.levels[i])
    tokens, of, right = int(routed.tokens[i]), int(finest.tokens[i]), bool(routed.right[i])
    image, overlay = draw(scene.image, level)
    chosen = f"level {level}, {tokens} of {of} visual tokens"
    target = io.BytesIO()
    image.save(target, format="PNG", optimize=True)
    seen = scene_in_words(scene)
    alt = f"{seen[0].upper()}{seen[1:]}. Chosen: {chosen}; lines part them."
    told = [f"asked as: {question.question}"]
    if not right:
        told.append(f"expected: {question.answer}; the finest level answers: {finest.texts[i] or '(nothing)'}")
    return Card(
        question=SENTENCES.get(question.question, question.question),
        answer=routed.texts[i] or "(nothing)",
        kind=question.kind,
        levels=(level,),
        score=float(right),
        images=(CardImage(target.getvalue(), "image/png", image.width, image.height, alt, overlay),),
        notes=(*told, f"{question.kind} · {chosen}"),
    )


def pooled(windows: Windows) -> Draw:
    """Shows the image as it is, and the cells of the pooled grid, one per token."""

    def draw(image: Image.Image, level: int) -> tuple[Image.Image, Overlay]:
        down, across = windows[level]
        return image, Overlay.grid(-(-image.height // (down * CELL)), -(-image.width // (across * CELL)))

    return draw


def resized(grids: Sequence[Grid]) -> Draw:
    """Shows the image as it was encoded, and its tokens.

    Args:
        grids: of the tokens, per level.
    """

    def draw(image: Image.Image, level: int) -> tuple[Image.Image, Overlay]:
        grid = grids[level]
        small = image.resize((grid.cols * CELL, grid.rows * CELL), Image.Resampling.BICUBIC)
        return small, Overlay.grid(grid.rows, grid.cols)

    return draw


def _accuracy(result: dict[str, Any]) -> Table:
    shown, finest = rows(result), result["levels"][-1]["tokens_mean"]
    heads = ("setting", "accuracy", "visual tokens", "of finest", "against finest", "tower's work", *KINDS)
    names = numbered([name for name, _ in shown])
    found = []
    for place, (name, entry) in enumerate(shown):
        tokens, difference = entry["tokens_mean"], entry.get("minus_finest")
        cells = (
            Cell(f"{entry['accuracy']:.3f}", entry["accuracy"]),
            Cell(f"{tokens:.1f}", tokens),
            Cell(f"{100 * tokens / finest:.0f} %", tokens / finest),
            Cell("" if difference is None else f"{difference:+.3f}", difference),
            Cell(f"{100 * entry['tower']:.0f} %", entry["tower"]),
            *(Cell(f"{entry['accuracy_by_kind'][kind]:.2f}", entry["accuracy_by_kind"][kind]) for kind in KINDS),
        )
        found.append(Row((names[place], *cells), "router" if name == "router" else ""))
    return Table("Accuracy and visual tokens", tuple(Column(head, MEANS[head]) for head in heads), tuple(found))


def _choices(result: dict[str, Any], by: str, title: str) -> Table | None:
    """Questions per level, by ``kind`` or ``spacing``; None where nothing was routed, or an older report has none."""
    counts: dict[str, list[int]] | None = result.get("router", {}).get(f"choices_by_{by}")
    if counts is None:
        return None
    shown = [kind for kind in KINDS if kind in counts] if by == "kind" else list(counts)
    names = numbered(shown)
    found = tuple(Row((names[i], *(Cell(str(n), n) for n in counts[one]))) for i, one in enumerate(shown))
    head = "kind" if by == "kind" else "a window per digit"
    heads = (head, *(f"level {level}" for level in range(len(result["levels"]))))
    return Table(title, tuple(map(Column, heads)), found)


def _times(result: dict[str, Any]) -> Table:
    names = numbered(list(result["seconds"]))
    found = tuple(Row((names[i], Cell(f"{s:.1f}", s))) for i, s in enumerate(result["seconds"].values()))
    return Table("Time", (Column("phase"), Column("seconds")), found)


def _series(name: str, colour: str, marker: str, entries: Sequence[dict[str, Any]], line: str = "") -> Series:
    spots = [(entry["tokens_mean"], entry["accuracy"]) for entry in entries]
    ends = [_ends(entry, "accuracy") for entry in entries]
    known = [((x, x), end) for (x, _), end in zip(spots, ends, strict=True) if end is not None]
    return Series(name, colour, marker, spots, known if len(known) == len(spots) else (), line)


def _ends(entry: dict[str, Any], name: str) -> tuple[float, float] | None:
    found = entry.get(f"{name}_ci95")
    return None if found is None else (found[0], found[1])
