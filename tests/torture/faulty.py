"""Requests with one fault each, for any tiny host of the zoo."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from tokenflex.hosts.refusing import SIZES
from tokenflex.testing.zoo.recipe import AN_IMAGE, WORD, Row, TinyHost

TWO: tuple[Row, ...] = ((1, 2, AN_IMAGE, 3, 4), (5, AN_IMAGE, 6, 7))
ONE: tuple[Row, ...] = ((1, 2, AN_IMAGE, 3, 4),)
TEXT: tuple[Row, ...] = ((1, 2, 3), (4, 5, 6, 7))
MIXED: tuple[Row, ...] = ((1, 2, AN_IMAGE, 3, 4), (5, 6, 7, 8))
BEYOND = (64, 65, 10**6, 2**40, -1, -5, -(2**40))
"""Ids that the zoo's vocabulary of 64 doesn't have."""
ODD_SIZES = (0, -1, -(10**6), 3, 7, 10**6, 2**31, 2**40, 2**62, -(2**62))
Batch = dict[str, Any]


@dataclass(frozen=True)
class Requests:
    """Makes requests for one host, some of them faulty.

    Attributes:
        tiny: the host's recipe.
        config: the host's.
        random: where choices come from.
    """

    tiny: TinyHost
    config: Any
    random: Random

    def good(self, rows: tuple[Row, ...] = TWO) -> Batch:
        """As a processor makes it, padded on either side."""
        return dict(self.tiny.batch(self.config, rows, side=self.random.choice(("left", "right"))))

    def visual(self, batch: Batch) -> list[str]:
        """Names of what belongs to images."""
        shape = batch["input_ids"].shape
        return [name for name, value in batch.items() if value.shape != shape]

    def mixed(self, text: Batch, shown: Batch) -> Batch:
        """The words of one batch with the images of another."""
        words = {name: value for name, value in text.items() if name not in self.visual(text)}
        return words | {name: shown[name] for name in self.visual(shown)}

    def places(self, batch: Batch, row: int, shown: bool) -> list[int]:
        """Positions of placeholders, or of words."""
        ids = batch["input_ids"][row]
        here = ids == self.config.image_token_id
        return (here if shown else (ids >= WORD) & ~here).nonzero().flatten().tolist()

    def put(self, batch: Batch, name: str, row: int, place: int, value: Any) -> Batch:
        """The batch with one entry changed."""
        changed = batch[name].clone()
        changed[row, place] = value
        return {**batch, name: changed}


def more_or_fewer(ask: Requests) -> Batch:
    """Placeholders that don't fit the images, or images that don't fit the placeholders."""
    batch, row, token = ask.good(), ask.random.randrange(2), ask.config.image_token_id
    kind = ask.random.choice(("more", "fewer", "moved", "images lack", "images are left", "no placeholder"))
    if kind in ("images lack", "images are left"):
        few, many = ask.good(ONE), ask.good()
        return ask.mixed(many, few) if kind == "images lack" else ask.mixed(few, many)
    if kind == "no placeholder":
        return ask.mixed(ask.good(TEXT), batch)
    if kind in ("fewer", "moved"):
        batch = ask.put(batch, "input_ids", row, ask.random.choice(ask.places(batch, row, True)), WORD + 9)
    if kind in ("more", "moved"):
        other = row if kind == "more" else 1 - row
        batch = ask.put(batch, "input_ids", other, ask.random.choice(ask.places(batch, other, False)), token)
    return batch


def typed(ask: Requests) -> Batch:
    """The placeholder as a word of a row without an image."""
    batch = ask.good(ask.random.choice((TEXT, MIXED)))
    return ask.put(batch, "input_ids", 1, ask.random.choice(ask.places(batch, 1, False)), ask.config.image_token_id)


def cut_or_empty(ask: Requests) -> Batch:
    """Prompts cut inside an image, of an image alone, of one word, of nothing."""
    kind = ask.random.choice(("cut behind", "cut in front", "image alone", "one word", "no word", "no row"))
    if kind in ("image alone", "one word"):
        return ask.good(((AN_IMAGE,),) if kind == "image alone" else ((1,),))
    batch = ask.good()
    words = [name for name in batch if name not in ask.visual(batch)]
    if kind.startswith("cut"):
        cut = ask.random.choice(ask.places(batch, 0, True)[1:])
        where = slice(0, cut) if kind == "cut behind" else slice(cut, None)
        return batch | {name: batch[name][:, where] for name in words}
    return batch | {name: batch[name][:, :0] if kind == "no word" else batch[name][:0] for name in words}


def beyond(ask: Requests) -> Batch:
    """Ids that the vocabulary doesn't have; also as labels, as padding, and in text alone."""
    batch = ask.good(ask.random.choice((TWO, MIXED, TEXT)))
    row, value = ask.random.randrange(2), ask.random.choice(BEYOND)
    if ask.random.random() < 0.3:
        labels = batch["input_ids"].masked_fill(batch["input_ids"] < WORD, -100)
        labels[batch["attention_mask"] == 0] = -100
        wrong = ask.put({"labels": labels}, "labels", row, ask.places(batch, row, False)[-1], value)
        return {**batch, "labels": wrong["labels"].float() if ask.random.random() < 0.2 else wrong["labels"]}
    padding = (batch["attention_mask"][row] == 0).nonzero().flatten().tolist()
    return ask.put(batch, "input_ids", row, ask.random.choice([*ask.places(batch, row, False), *padding]), value)


def masks(ask: Requests) -> Batch:
    """Masks that are missing, zero, have holes, another shape, another type or other values."""
    batch = ask.good(ask.random.choice((TWO, MIXED, TEXT, ONE)))
    mask, row = batch["attention_mask"], ask.random.randrange(len(batch["attention_mask"]))
    hole = ask.random.choice(ask.places(batch, row, False) + ask.places(batch, row, True)[:2])
    forms: dict[str, Callable[[], Any]] = {
        "missing": lambda: None,
        "all zero": lambda: mask * 0,
        "a row of zeros": lambda: mask * (torch.arange(len(mask)) != row)[:, None],
        "a hole": lambda: ask.put(batch, "attention_mask", row, hole, 0)["attention_mask"],
        "shorter": lambda: mask[:, 1:],
        "fewer rows": lambda: mask[:-1],
        "one axis": lambda: mask[0],
        "float": mask.float,
        "bool": mask.bool,
        "additive": lambda: torch.zeros(mask.shape).masked_fill(mask == 0, -torch.inf),
        "NaN": lambda: mask.float().masked_fill(mask == 0, torch.nan),
        "twos": lambda: mask * 2,
        "a list": mask.tolist,
    }
    made = forms[ask.random.choice(list(forms))]()
    rest = {name: value for name, value in batch.items() if name != "attention_mask"}
    return rest if made is None else {**rest, "attention_mask": made}


def sizes(ask: Requests) -> Batch:
    """Sizes of images that are none, or of another count, shape or type; also token types."""
    batch = ask.good()
    types = [name for name in batch if name.endswith("token_type_ids")]
    known = [name for name in ask.visual(batch) if name in SIZES or name == "image_position_ids"] + types
    if not known:
        return more_or_fewer(ask)
    name = ask.random.choice(known)
    value: Tensor = batch[name]
    odd = value.long().clone()
    odd.view(-1)[ask.random.randrange(odd.numel())] = ask.random.choice(ODD_SIZES)
    forms: dict[str, Callable[[], Any]] = {
        "odd": lambda: odd,
        "zeros": lambda: value * 0,
        "float": value.float,
        "NaN": lambda: value.float() * torch.nan,
        "bool": value.bool,
        "fewer": lambda: value[:-1],
        "more": lambda: torch.cat([value, value[:1]]),
        "none": lambda: value[:0],
        "flat": value.flatten,
        "narrow": lambda: value[..., :-1],
        "missing": lambda: None,
        "a list": value.tolist,
        "a word": lambda: "large",
    }
    if name in types:
        del forms["missing"]  # no fault: they are made from the ids
    made = odd if ask.random.random() < 0.5 else forms[ask.random.choice(list(forms))]()
    rest = {key: one for key, one in batch.items() if key != name}
    return rest if made is None else {**rest, name: made}


def floating(ask: Requests, batch: Batch) -> str:
    """The name of an input of pixels."""
    return ask.random.choice([name for name in ask.visual(batch) if name.startswith("pixel") and "mask" not in name])


def not_finite(ask: Requests) -> Batch:
    """Pixels that are NaN or infinite, in one image."""
    batch = ask.good()
    name = floating(ask, batch)
    changed = batch[name].clone().float()
    changed.view(-1)[ask.random.choice((0, -1))] = ask.random.choice((torch.nan, torch.inf, -torch.inf))
    return {**batch, name: changed}


def pixels(ask: Requests) -> Batch:
    """Pixels of another type, shape or kind."""
    batch = ask.good()
    name = floating(ask, batch)
    value: Tensor = batch[name]
    forms: dict[str, Callable[[], Any]] = {
        "int64": value.long,
        "uint8": lambda: value.to(torch.uint8),
        "float64": value.double,
        "float16": value.half,
        "complex": lambda: value.to(torch.complex64),
        "narrower": lambda: value[..., :-1],
        "fewer": lambda: value[:-1],
        "none": lambda: value[:0],
        "twice": lambda: torch.cat([value, value]),
        "one axis more": lambda: value[None],
        "one axis less": lambda: value[0],
        "one channel": lambda: value.narrow(-3, 0, 1) if value.dim() > 2 else value[..., :3],
        "a list": value.tolist,
        "an array": value.numpy,
        "a word": lambda: "image",
        "missing": lambda: None,
    }
    made = forms[ask.random.choice(list(forms))]()
    rest = {key: one for key, one in batch.items() if key != name}
    return rest if made is None else {**rest, name: made}


def text_alone(ask: Requests) -> Batch:
    """No fault: rows without images."""
    return ask.good(ask.random.choice((TEXT, ((1,),), ((1, 2), (3, 4), (5, 6, 7, 8, 9)))))


FAULTS: Mapping[str, Callable[[Requests], Batch]] = {
    "more or fewer placeholders than images": more_or_fewer,
    "a placeholder typed where no image is": typed,
    "prompts cut inside an image, of an image alone, or empty": cut_or_empty,
    "ids and labels outside the vocabulary": beyond,
    "attention masks missing, zero, with holes, of other shapes, types and values": masks,
    "sizes of images zero, negative, huge, of another count, shape or type": sizes,
    "pixels NaN or infinite": not_finite,
    "pixels of another type, shape or kind": pixels,
    "text alone": text_alone,
}
