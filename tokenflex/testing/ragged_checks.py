"""The law of rows of different length: read in groups of similar length, they give what the padded batch gives."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tokenflex.contracts import PaddingSide
from tokenflex.hosts import continuing
from tokenflex.hosts.grouped import Options, Rows, forward, generate, refusal, refused_forward, refused_generate
from tokenflex.testing.bench import Skip
from tokenflex.testing.host_bench import LEVELS, NEW, HostBench, close, labels_of
from tokenflex.testing.zoo.recipe import A_VIDEO, AN_IMAGE
from tokenflex.testing.zoo.recipe import Row as Words

ROWS: tuple[Words, ...] = (
    (1, 2, AN_IMAGE, 3),
    (4, 5, 6, 7, 8),
    (AN_IMAGE, 9, 10, AN_IMAGE, 11, 12),
    (3, 4, 5),
    (6, 7, 8),
)
"""One image, none, two; two rows of equal length."""
VIDEOS: tuple[Words, ...] = ((1, A_VIDEO, 2), (3, 4, A_VIDEO, 5, A_VIDEO, 8), (6, 7))
TURN = (20, 21, 22)
WAYS = ("padded", "grouped")
LEFT_BEHIND = {"rope_deltas"}
"""Of outputs: what transformers 5.18 passes on from whichever earlier call computed positions; not this batch's."""


def groups_give_what_padding_gives(bench: HostBench) -> None:
    """Logits, loss, ids, and what is gone on with from the cache."""
    _require_groups(bench, _rows(bench, bench.batch(ROWS), "left"))
    for side in ("left", "right"):
        inputs = bench.batch(ROWS, side=side)
        _same_forward(bench, inputs, side)
        for share in ({}, {"num_items_in_batch": 17}):
            arguments = {**inputs, "labels": labels_of(inputs), **share}
            padded, grouped = _both(lambda way, arguments=arguments: _forward(bench, arguments, way).loss)
            assert torch.allclose(padded, grouped, rtol=1e-5), f"{side}: the loss is {grouped}, the padded {padded}"
    inputs = bench.batch(ROWS)
    _same_answers(bench, inputs)
    _same_answers(bench, inputs, do_sample=True, num_return_sequences=2)
    _same_answers(bench, inputs, num_beams=2)
    if bench.tiny.videos is not None:
        _same_forward(bench, bench.batch(VIDEOS), "left")
        _same_answers(bench, bench.batch(VIDEOS))


def _rows(bench: HostBench, inputs: Mapping[str, Any], side: PaddingSide | None) -> Rows:
    """The batch with its images at different levels."""
    batch, images, scaled = bench.scaled(inputs, LEVELS)
    return Rows.of(bench.host, bench.adapter, batch, images, scaled, side)


def _require_groups(bench: HostBench, rows: Rows) -> None:
    """Leave out hosts of which it is known that they take the padded way."""
    inputs, settings = rows.whole.inputs, Options(bench.host, {})
    reason = refusal(rows, inputs) or refused_forward(rows, inputs) or refused_generate(rows, settings)
    if reason:
        raise Skip(f"padded, because {reason}")


def _both(call: Callable[[str], Any]) -> tuple[Any, Any]:
    """What a call gives in both ways, each from the same seed."""
    found: list[Any] = []
    for way in WAYS:
        torch.manual_seed(0)
        found.append(call(way))
    return found[0], found[1]


def _forward(bench: HostBench, inputs: Mapping[str, Any], way: str) -> Any:
    rows = _rows(bench, inputs, None)
    return forward(rows, rows.whole.inputs, way)


def _same_forward(bench: HostBench, inputs: Mapping[str, Any], side: str) -> None:
    """The logits, and those of a further turn behind the cache."""
    rows = _rows(bench, inputs, None)
    mask: Tensor = rows.whole.inputs["attention_mask"]
    padded, grouped = _both(lambda way: _forward(bench, inputs, way))
    names = [set(output.keys()) - LEFT_BEHIND for output in (grouped, padded)]
    assert names[0] == names[1], f"{side}: outputs are {sorted(names[0])}, the padded {sorted(names[1])}"
    close(grouped.logits[mask != 0], padded.logits[mask != 0], f"{side} padding, groups and padded")
    if continuing.cache_of(padded) is None:
        return
    turn = torch.tensor([TURN] * len(mask))
    longer = torch.cat([mask, torch.ones_like(turn)], dim=1)

    def further(output: Any) -> Tensor:
        cache = continuing.cache_of(output)
        continuing.remember(cache, rows.whole.inputs, bench.adapter)
        batch = {"input_ids": turn, "attention_mask": longer, continuing.name_of_cache(output): cache}
        return bench.host(**batch, **continuing.positions(batch, mask.shape[1], bench.adapter, new_only=True)).logits

    close(further(grouped), further(padded), f"{side} padding, a turn behind the cache of groups and of the padded")


def _same_answers(bench: HostBench, inputs: Mapping[str, Any], **options: Any) -> None:
    """Ids, logits, and the length of the cache."""
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "return_dict_in_generate": True, "output_logits": True}
    settings |= {"suppress_tokens": list(bench.adapter.placeholder_ids) or None, **options}

    def run(way: str) -> Any:
        rows = _rows(bench, inputs, "left")
        return generate(rows, copy.copy(rows.whole.inputs), settings, way)

    padded, grouped = _both(run)
    assert torch.equal(padded.sequences, grouped.sequences), f"{options}: ids are {grouped.sequences}, the padded ones"
    lengths = [int(continuing.cache_of(output).get_seq_length()) for output in (padded, grouped)]
    assert lengths[0] == lengths[1], f"{options}: the cache holds {lengths[1]} tokens, the padded {lengths[0]}"
    if "num_beams" not in options:
        for one, other in zip(grouped.logits, padded.logits, strict=True):
            close(one, other, f"{options}: groups and padded")
