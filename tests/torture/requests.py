"""Requests that don't fit together, for a model of every family of hosts: the right answer, or an error of the library.

A request is right if the finest level's logits and ids are those of the host itself. Where the host refuses it, so must
the model; where the model refuses it, the error is an `InputError`. A row's result is right beside rows of another kind
if it is that of the row alone, up to what the host's own rows differ by.
"""

import functools
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, cast

import torch
from torch import Tensor

import tokenflex
from tests.hosts.processed import PROCESSORS, batch, image
from tests.torture.faulty import FAULTS, Batch, Requests
from tests.torture.outcome import Counts, Outcome
from tokenflex.errors import InputError, TokenFlexError
from tokenflex.hosts.refusing import SIZES
from tokenflex.tables import hosts as hosts_table
from tokenflex.testing.zoo.hosts import ZOO
from tokenflex.testing.zoo.recipe import AN_IMAGE, Row

AREA = "Requests"
TRIALS = 1500
"""Of faults, at scale 1; of rows beside others a tenth, of thin images one per processor and shape."""
HOSTS = (
    "llava", "internvl", "gemma3", "idefics2", "idefics3", "paligemma", "ovis2", "aya_vision", "janus", "fast_vlm",
    "llava_next", "llava_next_video", "llava_onevision", "granite4_vision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl",
    "glm4v", "qwen3_5", "video_llama_3", "kimi_k25", "mistral3", "lfm2_vl", "gemma4", "molmo2", "minicpmv4_6",
)  # fmt: skip
"""Of every family, and of every way in which images are told of."""
THIN = ((1, 10_000), (10_000, 1), (1, 1), (3, 2_000))
GOOD: tuple[Row, ...] = ((1, 2, AN_IMAGE, 3), (4, AN_IMAGE, 5, 6, 7))
STRANGE: Mapping[str, Row] = {
    "text": (8, 9),
    "an image alone": (AN_IMAGE,),
    "two images": (AN_IMAGE, 8, AN_IMAGE, 9),
    "many words": tuple(range(1, 31)),
    "NaN": (8, AN_IMAGE, 9),
    "a hole": (8, 9, 10, AN_IMAGE, 11),
}


def served() -> list[str]:
    """Those of `HOSTS` that the installed transformers lets us serve."""
    known = hosts_table.architectures()
    return [name for name in HOSTS if name in known and hosts_table.refusal(name) is None]


@functools.lru_cache(maxsize=8)
def model(name: str) -> Any:
    """A tiny host with the published router, in evaluation mode."""
    torch.manual_seed(0)
    return tokenflex.wrap(ZOO[name].build(), router="avg", voter="mean").eval()


def attempt(call: Callable[[], Any]) -> tuple[str, Any]:
    """(``ok``, what it gives), (``refused``, error of the library) or (``crashed``, any other)."""
    try:
        return "ok", call()
    except TokenFlexError as error:
        return "refused", error
    except Exception as error:
        return "crashed", error


def same(one: Tensor, other: Tensor) -> bool:
    """Equal, NaN for NaN."""
    return one.shape == other.shape and torch.equal(one.nan_to_num(7e7), other.nan_to_num(7e7))


def calls(flex: Any, given: Batch, random: Random) -> list[tuple[str, Callable[[], Any], Callable[[], Any] | None]]:
    """(name, the model's call, the host's where both must agree): the finest forward, and one of the others."""
    host, new = flex.host, {"max_new_tokens": 2, "min_new_tokens": 2}
    words = {name: value for name, value in given.items() if name != "labels"}
    mask = given.get("attention_mask")
    left = not isinstance(mask, Tensor) or bool((mask[..., -1:] != 0).all())
    others: list[tuple[str, Callable[[], Any], Callable[[], Any] | None]] = [
        ("forward at a coarse level", lambda: flex(**given, level=0).logits, None),
        ("forward, routed", lambda: flex(**given).logits, None),
        ("decide", lambda: flex.decide(**words), None),
        ("encode", lambda: flex.encode(words), None),
        (
            "generate",
            lambda: flex.generate(**words, level=-1, **new),
            (lambda: host.generate(**words, **new)) if left else None,
        ),
    ]
    finest = ("forward", lambda: flex(**given, level=-1).logits, lambda: host(**given).logits)
    return [finest, random.choice(others)]


def tried(name: str, given: Batch, random: Random, tally: Counts, fault: str) -> None:
    """One faulty request, by two calls."""
    tally.times += 1
    refused = False
    for call, ours, theirs in calls(model(name), given, random):
        state, found = attempt(ours)
        refused = refused or state == "refused"
        if state == "crashed":
            tally.crashed += 1
            tally.seen.append(f"{name} {call}: {type(found).__name__}: {str(found)[:80]}")
        elif state == "refused" and not (isinstance(found, InputError) and _names_something(str(found), given)):
            tally.wrong += 1
            tally.seen.append(f"{name} {call}: an error that names nothing: {str(found)[:80]}")
        elif state == "ok" and theirs is not None:
            said, expected = attempt(theirs)
            if said != "ok" or not same(cast(Tensor, found), expected):
                tally.wrong += 1
                tally.seen.append(f"{name} {call}: {fault}: the host {'differs' if said == 'ok' else 'refuses'}")
    tally.refused += refused


def _names_something(said: str, given: Batch) -> bool:
    """An input, or a row or image by its number."""
    known = ("input_ids", "attention_mask", "row ", "image ", "the batch has no images", *SIZES, *given)
    return any(name in said for name in known)


def spoilt(given: Batch, kind: str, random: Random) -> Batch:
    """The strange row's own fault; it stands last."""
    if kind == "NaN":
        pixels = given["pixel_values"].clone()
        pixels.view(-1)[-1] = torch.nan
        return {**given, "pixel_values": pixels}
    if kind == "a hole":
        mask = given["attention_mask"].clone()
        first = int(mask[-1].nonzero()[0])
        mask[-1, first + random.randrange(1, 4)] = 0
        return {**given, "attention_mask": mask}
    return given


def beside(name: str, kind: str, level: int | None, random: Random) -> tuple[float, float]:
    """How far logits of good rows are from those alone: (beside a strange one, as the host's own rows are).

    Args:
        kind: of the strange row, in `STRANGE`.
        level: of every image; None: each image has the one that the router picks.
    """
    flex, tiny = model(name), ZOO[name]
    side = random.choice(("left", "right"))
    together = spoilt(dict(tiny.batch(flex.host.config, (*GOOD, STRANGE[kind]), side=side)), kind, random)
    off, own, first = 0.0, 0.0, 0
    flex.compressor.on_bad_scores = "finest"
    try:
        many, host_many = flex(**together, level=level), flex.host(**together).logits
        rows, _ = flex.prepare(together, [decision.level for decision in many.decisions])
        chosen = iter(many.decisions)
        for row, words in enumerate(GOOD):
            alone = tiny.batch(flex.host.config, (words,), first=first)
            first += 1
            same = [next(chosen).level for _ in flex.decide(**alone, level=0)]  # crops may count as images
            single = flex(**alone, level=same).logits[0]
            off = max(off, _off(many.logits[row][rows.inputs["attention_mask"][row] != 0], single))
            shown = host_many[row][together["attention_mask"][row] != 0]
            own = max(own, _off(shown, flex.host(**alone).logits[0]))
    finally:
        flex.compressor.on_bad_scores = "raise"
    return off, own


def _off(one: Tensor, other: Tensor) -> float:
    """Largest difference in units of the largest number; infinite between shapes and for what isn't a number."""
    if one.shape != other.shape or not bool(one.isfinite().all()):
        return float("inf")
    return float((one - other).abs().max() / other.abs().max().clamp(min=1))


def allowed(own: float) -> float:
    """How far a row may be off: rounding, or ten times what the host's own rows are off by."""
    return max(1e-4, 10 * own)


def neighbours(random: Random, times: int) -> Outcome:
    """Good rows beside one of another kind."""
    tally, worst, names = Counts(), 0.0, served()
    for turn in range(times):
        name, kind = names[turn % len(names)], random.choice(list(STRANGE))
        level = random.choice((None, 0, 1, -1))
        tally.times += 1
        state, found = attempt(lambda name=name, kind=kind, level=level: beside(name, kind, level, random))
        if state == "refused":
            tally.refused += 1
        elif state == "crashed":
            tally.crashed += 1
            tally.seen.append(f"{name}, {kind}: {type(found).__name__}: {str(found)[:80]}")
        elif found[0] > allowed(found[1]):
            tally.wrong += 1
            tally.seen.append(f"{name}, {kind}: off by {found[0]:.2g}, the host by {found[1]:.2g}")
        else:
            worst = max(worst, found[0])
    return tally.outcome(
        AREA,
        "a row beside rows of another kind (text, one image alone, two, many words, NaN, a hole in the mask)",
        f"{len(names)} hosts; good rows are at most {worst:.1g} of the largest logit off those alone",
    )


def thin(random: Random, scale: float) -> Outcome:
    """Images of one pixel by ten thousand, through the hosts' own processors."""
    known = [name for name in PROCESSORS if name in ZOO and hosts_table.refusal(name) is None]
    trials = [(name, size) for name in known for size in THIN]
    random.shuffle(trials)
    tally = Counts()
    for name, size in trials[: max(int(len(trials) * scale), 4)]:
        flex = model(name)
        state, given = attempt(
            lambda name=name, size=size, flex=flex: batch(
                ZOO[name], flex.adapter, PROCESSORS[name](flex.host.config), [image(*size)]
            )
        )
        if state == "ok":
            tried(name, given, random, tally, f"{size[0]} x {size[1]}")
        else:  # the processor itself takes no such image, so no request comes of it
            tally.times += 1
            tally.refused += 1
    return tally.outcome(
        AREA,
        "images of 1 x 10,000 and other thin ones, through the host's own processor",
        f"{len(known)} processors; refused: by the processor itself, or by the library",
    )


def run(scale: float, seed: int) -> list[Outcome]:
    """Every kind of fault by turns, on every host by turns."""
    random, names = Random(seed), served()
    random.shuffle(names)
    tallies = {fault: Counts() for fault in FAULTS}
    with torch.no_grad():
        order = [(name, fault) for name in names for fault in FAULTS]
        trials = max(int(TRIALS * scale), len(FAULTS))
        if trials < len(order):
            order = random.sample(order, trials)
        each = trials // len(order)
        for name, fault in sorted(order):
            for _ in range(each):
                ask = Requests(ZOO[name], model(name).host.config, random)
                state, given = attempt(lambda ask=ask, fault=fault: FAULTS[fault](ask))
                assert state == "ok", f"{name}, {fault}: {given!r}"
                tried(name, given, random, tallies[fault], fault)
        note = f"{len(names)} hosts; forward, generate, decide and encode"
        found = [tally.outcome(AREA, fault, note) for fault, tally in tallies.items()]
        return [*found, neighbours(random, max(int(TRIALS * scale / 10), 6)), thin(random, scale)]
