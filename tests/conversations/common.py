"""Conversations with tiny hosts, by tokens or by words."""

import torch
import transformers

import tokenflex
from tests.conftest import image
from tests.hosts.served import served
from tests.training.words import word_processor
from tokenflex.hosts.appending import PER_TOKEN
from tokenflex.registry import hosts
from tokenflex.testing.zoo.recipe import AN_IMAGE

ANSWER = {"max_new_tokens": 4, "min_new_tokens": 4}
ROWS = (
    (1, 2, AN_IMAGE, 3),
    (4, 5, 6),
    (7, AN_IMAGE, 8, AN_IMAGE, 9),
    (5, 6),
    (7, 8),
    (1, AN_IMAGE, 2),
)
"""One turn each: images come alone, two at a time, or not at all."""
LATER = (1, 1, 2, 2, 0, 0)
"""Per turn the level of all images but the first, which stays at level 1."""


def opened(name, router="random", **settings):
    """(the tiny host's recipe, a model of it that never says a placeholder)."""
    tiny = served(name)
    host = tiny.build()
    adapter = hosts.get(name)(host)
    flex = tokenflex.wrap(host, router=router, voter="mean", adapter=adapter, **settings).eval()
    return tiny, flex


def options(flex):
    return {**ANSWER, "suppress_tokens": list(flex.adapter.placeholder_ids) or None}


def turn(tiny, flex, row, number, images):
    """One turn's tokens; only the first has what begins a sequence."""
    batch = tiny.batch(flex.host.config, (row,), first=images)
    if number:
        batch = {name: value[:, 1:] if name in PER_TOKEN else value for name, value in batch.items()}
    return batch


def turns(tiny, flex, rows=ROWS):
    images = 0
    for number, row in enumerate(rows):
        yield turn(tiny, flex, row, number, images)
        images += sum(one == AN_IMAGE for one in row)


def cold(conversation, asked=None):
    """What the host answers to the conversation's prompt without anything kept, at the levels it has."""
    history, flex = conversation._history, conversation.flex
    levels = [decision.level for decision in conversation.decisions]
    prompt = history.prompt(history.turns, levels)
    given = prompt.behind(flex, 0)
    asked = {**options(flex), **(asked or {})}
    return flex.host.generate(**given, **asked)[0, given["input_ids"].shape[1] :].cpu()


def internvl():
    """A model, and a processor with a chat template whose words it knows."""
    processor = word_processor(
        lambda tokenizer: transformers.InternVLProcessor(
            transformers.GotOcr2ImageProcessor(size={"height": 16, "width": 16}, max_patches=3),
            tokenizer, transformers.InternVLVideoProcessor(), image_seq_length=16,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    flex = tokenflex.wrap(served("internvl").build(), router="random", voter="mean", processor=processor).eval()
    return flex, processor


def picture(number):
    return image(number).resize((32, 32))
