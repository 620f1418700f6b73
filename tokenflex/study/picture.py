"""One image, two questions, and the tokens that the router left of it for each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tokenflex.evaluation import drawing
from tokenflex.evaluation.answering import Batch
from tokenflex.evaluation.questions import Questions
from tokenflex.evaluation.settings import parse
from tokenflex.files import whole
from tokenflex.model import FlexModel
from tokenflex.study.images import font_of
from tokenflex.study.rows import ANSWER
from tokenflex.study.sources import fonts

WIDE, ROOM, GAP = 480, 96, 24
"""Pixels of an image, of the text under it, and between two."""


def contrast(flex: FlexModel, processor: Any, asked: Questions) -> Image.Image | None:
    """Of the images whose questions the router's levels answer right, the one whose two levels differ most.

    Args:
        asked: two questions per image, one behind the other: about the whole, and to read.

    Returns:
        The image twice, with what was kept; None where no image has two right answers.
    """
    setting, best, found = parse(flex, ["router"])[0], -1, None
    for place in range(0, len(asked) - 1, 2):
        batch = Batch(processor, {i: asked.sample(i) for i in (place, place + 1)}, {place, place + 1})
        pair = batch.answers(setting, (place, place + 1), ANSWER)
        right = all(answer.text in asked.questions[answer.place].references for answer in pair)
        apart = pair[1].decisions[0].level - pair[0].decisions[0].level
        if right and apart > best:
            best, found = apart, (place, pair, batch)
    if found is None:
        return None
    place, pair, batch = found
    panels = []
    for answer in pair:
        decision = answer.decisions[0]
        inputs = batch.inputs(flex, (answer.place,))
        kept = drawing.cells(flex, inputs, [decision.level])[0]
        seen = drawing.with_kept_tokens(drawing.stored(asked.sample(answer.place).images[0]), kept)
        question = asked.questions[answer.place]
        panels.append(_panel(seen, question.text, f"{answer.text}: {decision.tokens} of {decision.of} tokens"))
    return _beside(panels)


def _panel(seen: Image.Image, question: str, answer: str) -> Image.Image:
    panel = Image.new("RGB", (WIDE, WIDE + ROOM), "white")
    panel.paste(seen.resize((WIDE, WIDE), Image.Resampling.NEAREST), (0, 0))
    pen, names = ImageDraw.Draw(panel), {file.stem: file for file in (*fonts("train"), *fonts("test"))}
    pen.text((4, WIDE + 12), question, font=font_of(names["DejaVuSans"], 26), fill=(20, 20, 20))
    pen.text((4, WIDE + 50), answer, font=font_of(names["DejaVuSans-Bold"], 26), fill=(20, 20, 20))
    return panel


def _beside(panels: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (sum(p.width for p in panels) + GAP * (len(panels) - 1), panels[0].height), "white")
    x = 0
    for panel in panels:
        sheet.paste(panel, (x, 0))
        x += panel.width + GAP
    return sheet


def write(flex: FlexModel, processor: Any, asked: Questions, target: Path) -> bool:
    """Write the picture as PNG; returns whether there is one."""
    made = contrast(flex, processor, asked)
    if made is not None:
        with whole(target) as scratch:
            made.save(scratch, format="PNG")
    return made is not None
