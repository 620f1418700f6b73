"""The laws of hosts: at the finest level an adapter changes nothing, at every other only the number of visual tokens.

Wherever the plain host itself refuses something (a static cache, say), the law asks nothing of the adapter.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenflex.contracts import HostAdapter
from tokenflex.testing.answer_checks import answers_only, packed_rows_keep_apart
from tokenflex.testing.attention_checks import attention_belongs_to_the_image
from tokenflex.testing.bench import Skip
from tokenflex.testing.host_bench import (
    COARSEST,
    FINEST,
    LEVELS,
    NEW,
    ROWS,
    SCALER,
    HostBench,
    HostCheck,
    close,
    labels_of,
    off,
    snapshot,
)
from tokenflex.testing.ragged_checks import groups_give_what_padding_gives
from tokenflex.testing.report import Report, Result
from tokenflex.testing.resize_checks import smaller_images_are_images
from tokenflex.testing.zoo.recipe import A_VIDEO, AN_IMAGE, Row, TinyHost


def same_logits(bench: HostBench) -> None:
    """Forward, with left and right padding."""
    for side in ("left", "right"):
        inputs = bench.batch(side=side)
        expected = bench.host(**inputs).logits
        found = bench.host(**bench.shortened(inputs, FINEST).inputs).logits
        assert torch.equal(expected, found), f"{side} padding: logits differ by {off(expected, found)}"


def same_loss(bench: HostBench) -> None:
    """With labels on words, the loss at the finest level is the plain host's."""
    inputs = bench.batch(side="right")
    labels = labels_of(inputs)
    expected = bench.plainly(lambda: bench.host(**inputs, labels=labels).loss)
    found = bench.host(**bench.shortened({**inputs, "labels": labels}, FINEST).inputs).loss
    assert torch.equal(expected, found), f"the loss is {found.item()}, the plain host's {expected.item()}"


def same_ids(rows: Sequence[Row] = ROWS, **options: Any) -> Callable[[HostBench], None]:
    """A check that generation with ``options`` gives the plain host's ids."""

    def run(bench: HostBench) -> None:
        inputs = bench.batch(rows)

        def generate(batch: Mapping[str, Any]) -> Tensor:
            torch.manual_seed(0)
            return bench.host.generate(**batch, max_new_tokens=NEW, **options)[:, -NEW:]

        expected = bench.plainly(lambda: generate(inputs))
        found = generate(bench.shortened(inputs, FINEST, "left").inputs)
        assert torch.equal(expected, found), f"ids are {found.tolist()}, the plain host's {expected.tolist()}"

    return run


def same_ids_with_an_assistant(bench: HostBench) -> None:
    """A twin of the host proposes tokens."""
    assistant = copy.deepcopy(bench.host)
    same_ids(((1, 2, AN_IMAGE, 3),), assistant_model=assistant)(bench)


def counts_known_in_advance(bench: HostBench) -> None:
    """Equal to the tokens spliced and to the features given, at every level; so are the rows of the images."""
    inputs = bench.batch()
    batch = bench.adapter.read(inputs)
    grids = batch.grids
    counts = bench.adapter.count(batch, [SCALER.layouts(grid) for grid in grids])
    assert len(counts) == len(grids), f"{len(grids)} grids, counts for {len(counts)}"
    images = bench.adapter.encode(batch)
    rows, stated = tuple(image.row for image in images), batch.rows
    assert tuple(image.grid for image in images) == grids, f"grids are {grids} before features exist, others after"
    assert stated == rows, f"rows are {rows}, told {stated}"
    for level in range(SCALER.num_levels):
        spliced = bench.shortened(inputs, level)
        assert list(spliced.tokens) == counts[:, level].tolist(), f"level {level}: {spliced.tokens}, told {counts}"
        shorter = inputs["input_ids"].numel() - spliced.inputs["input_ids"].numel()
        assert level == FINEST or shorter > 0, f"level {level} is no shorter than the full prompt"
    full, fewest = counts[:, FINEST].sum(), counts[:, COARSEST].sum()
    assert fewest < full, f"the coarsest level keeps {fewest} of {full} tokens"


def padding_is_inert(bench: HostBench) -> None:
    """Mixed levels, padded left, padded right."""
    left, right = (bench.shortened(bench.batch(side=side), LEVELS).inputs for side in ("left", "right"))
    rows = [_real_rows(bench, inputs) for inputs in (left, right)]
    for one, other in zip(*rows, strict=True):
        close(one, other, "left and right padding")


def batch_equals_singles(bench: HostBench) -> None:
    """Mixed levels: logits of every row alone."""
    together = _real_rows(bench, bench.shortened(bench.batch(), LEVELS).inputs)
    for row, inputs, levels in _singles(bench):
        alone = _real_rows(bench, bench.shortened(inputs, levels or FINEST).inputs)[0]
        close(together[row], alone, f"row {row} in the batch and alone")


def batch_generates_as_singles(**options: Any) -> Callable[[HostBench], None]:
    """A check of generation with mixed levels; the plain host must itself do so."""

    def run(bench: HostBench) -> None:
        def ids(inputs: Mapping[str, Any], levels: Any) -> Tensor:
            spliced = bench.shortened(inputs, levels, "left").inputs
            return bench.host.generate(**spliced, max_new_tokens=NEW, min_new_tokens=NEW, **options)[:, -NEW:]

        together = bench.plainly(lambda: ids(bench.batch(), LEVELS))
        for row, inputs, levels in _singles(bench):
            alone = ids(inputs, levels or FINEST)
            assert torch.equal(together[row : row + 1], alone), f"row {row}: {together[row].tolist()}, alone {alone}"

    return run


def labels_stay_on_their_words(bench: HostBench) -> None:
    """The same tokens carry loss at every level, and no placeholder does."""
    inputs = bench.batch(side="right")
    labels = labels_of(inputs)
    for level in range(SCALER.num_levels):
        found = bench.shortened({**inputs, "labels": labels}, level).inputs["labels"]
        for row, expected in zip(found, labels, strict=True):
            same = row[row >= 0].tolist() == expected[expected >= 0].tolist()
            assert same, f"level {level}: supervised tokens are {row[row >= 0].tolist()}"


def host_is_untouched(bench: HostBench) -> None:
    """The host's tensors, classes, hooks and settings are as they were."""
    bench.host(**bench.batch())  # transformers installs its own recording hooks on first use
    before = snapshot(bench.host)
    spliced = bench.shortened(bench.batch(), LEVELS)
    bench.host(**spliced.inputs)
    bench.host.generate(**bench.shortened(bench.batch(), LEVELS, "left").inputs, max_new_tokens=2)
    after = snapshot(bench.host)
    assert before[0].keys() == after[0].keys(), "the host's tensors have other names"
    changed = [name for name, tensor in before[0].items() if not torch.equal(tensor, after[0][name])]
    assert not changed, f"the host's {changed} changed"
    assert before[1:] == after[1:], "the host's classes, hooks or settings changed"


def text_passes_through(bench: HostBench) -> None:
    """Batches without images give what the plain host gives."""
    inputs = bench.batch(((1, 2, 3), (4, 5)))
    spliced = bench.shortened(inputs, FINEST)
    assert spliced.tokens == (), f"{spliced.tokens} visual tokens in a batch without images"
    assert torch.equal(bench.host(**inputs).logits, bench.host(**spliced.inputs).logits), "logits differ"


def groups_are_complete(bench: HostBench) -> None:
    """Every parameter in one group, none in two."""
    groups = bench.adapter.parameter_groups()
    ids = [id(p) for group in groups.values() for p in group]
    assert len(ids) == len(set(ids)), "a parameter is in two groups"
    assert set(ids) == {id(p) for p in bench.host.parameters()}, "parameters are left out"
    assert all(groups[name] for name in ("projector", "language_model")), "a group is empty"


def videos_too(bench: HostBench) -> None:
    """Videos, alone and beside images: identity, counts, a batch as its singles."""
    if bench.tiny.videos is None:
        raise Skip("its tiny host has no videos")
    videos: Sequence[Row] = ((1, A_VIDEO, 2), (3, 4, A_VIDEO, 5, A_VIDEO, 8), (6, 7))
    _videos(bench, videos, bench.plainly)
    try:
        _videos(bench, (*videos, (9, AN_IMAGE, 10, A_VIDEO, 11)), bench.plainly)
    except Skip:
        return  # the plain host doesn't take both in one batch


def _videos(bench: HostBench, rows: Sequence[Row], plainly: Callable[[Callable[[], Any]], Any]) -> None:
    inputs = bench.batch(rows)
    expected = plainly(lambda: bench.host(**inputs).logits)
    found = bench.host(**bench.shortened(inputs, FINEST).inputs).logits
    assert torch.equal(expected, found), f"logits differ by {off(expected, found)}"
    batch = bench.adapter.read(inputs)
    counts = bench.adapter.count(batch, [SCALER.layouts(grid) for grid in batch.grids])
    for level in range(SCALER.num_levels):
        assert list(bench.shortened(inputs, level).tokens) == counts[:, level].tolist(), f"counts of level {level}"
    together = _real_rows(bench, bench.shortened(inputs, 1).inputs)
    alone = _real_rows(bench, bench.shortened(bench.batch(rows[:1]), 1).inputs)[0]
    close(together[0], alone, "a video in the batch and alone")
    plain = plainly(lambda: bench.host.generate(**inputs, max_new_tokens=NEW)[:, -NEW:])
    spliced = bench.shortened(inputs, FINEST, "left").inputs
    assert torch.equal(plain, bench.host.generate(**spliced, max_new_tokens=NEW)[:, -NEW:]), "generated ids differ"


CHECKS = (
    HostCheck("logits", "the finest level gives the plain host's logits", same_logits),
    HostCheck("loss", "the finest level gives the plain host's loss", same_loss),
    HostCheck("greedy", "greedy search gives the plain host's ids", same_ids()),
    HostCheck("beams", "beam search gives the plain host's ids", same_ids(ROWS[:2], num_beams=3)),
    HostCheck(
        "samples", "sampling with a seed, several per row", same_ids(ROWS[:2], do_sample=True, num_return_sequences=2)
    ),
    HostCheck("static-cache", "with a static cache", same_ids(cache_implementation="static")),
    HostCheck(
        "prompt-lookup", "with prompt lookup", same_ids(((1, 2, 1, 2, AN_IMAGE, 1),), prompt_lookup_num_tokens=2)
    ),
    HostCheck("assisted", "with an assistant model", same_ids_with_an_assistant),
    HostCheck("chunked-prefill", "with the prompt in chunks", same_ids(prefill_chunk_size=8)),
    HostCheck("count", "token counts are known before features exist", counts_known_in_advance),
    HostCheck("padding", "the side of the padding changes nothing", padding_is_inert),
    HostCheck("batch", "a batch of mixed levels has its singles' logits", batch_equals_singles),
    HostCheck("batch-greedy", "and generates as they do", batch_generates_as_singles()),
    HostCheck("batch-beams", "with beams too", batch_generates_as_singles(num_beams=2)),
    HostCheck("labels", "the same words carry loss at every level", labels_stay_on_their_words),
    HostCheck("untouched", "the host stays as it was", host_is_untouched),
    HostCheck("text-only", "batches without images pass through", text_passes_through),
    HostCheck("groups", "parameter groups are disjoint and complete", groups_are_complete),
    HostCheck("answers", "logits at answer positions, and their loss, are the host's", answers_only),
    HostCheck("packed", "rows packed into one keep apart", packed_rows_keep_apart),
    HostCheck("ragged", "rows read in groups give what the padded batch gives", groups_give_what_padding_gives),
    HostCheck("attention", "the tower's attention belongs to the image's tokens", attention_belongs_to_the_image),
    HostCheck("resized", "smaller images are given to the host as images", smaller_images_are_images),
    HostCheck("videos", "videos keep the laws", videos_too),
)


@torch.no_grad()
def check_host(adapter: HostAdapter, tiny: TinyHost) -> Report:
    """Run all laws; those in ``tiny.exceptions`` must fail, for the reason given there.

    Args:
        adapter: on a model that ``tiny`` built.
        tiny: makes the batches.

    Raises:
        ValueError: an exception names no law, or gives no reason.
    """
    names = [check.name for check in CHECKS]
    wrong = [name for name, reason in tiny.exceptions.items() if name not in names or not reason.strip()]
    if wrong:
        raise ValueError(f"exception(s) {wrong} name no law or give no reason; laws: {', '.join(names)}.")
    bench = HostBench(adapter, tiny)
    return Report(tiny.model_type, tuple(_result(check, bench, tiny.exceptions.get(check.name)) for check in CHECKS))


def _result(check: HostCheck, bench: HostBench, expected: str | None) -> Result:
    try:
        check.run(bench)
    except Skip as reason:
        return Result(check.name, "skipped", str(reason))
    except Exception as error:
        if expected is not None:
            return Result(check.name, "expected failure", expected)
        text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        return Result(check.name, "failed", f"{check.law}; {text}")
    if expected is not None:
        return Result(check.name, "unexpected pass", f"it was expected to fail ({expected}), and it passes")
    return Result(check.name, "passed")


def _singles(bench: HostBench) -> list[tuple[int, dict[str, Tensor], list[int]]]:
    """(row, its batch of one, the levels of its units) as they are within `ROWS` under `LEVELS`."""
    found: list[tuple[int, dict[str, Tensor], list[int]]] = []
    images = units = 0
    for number, row in enumerate(ROWS):
        inputs = bench.batch((row,), first=images)
        images += sum(item == AN_IMAGE for item in row)
        own = len(bench.adapter.read(inputs).grids)
        found.append((number, inputs, [LEVELS[(units + i) % len(LEVELS)] for i in range(own)]))
        units += own
    return found


def _real_rows(bench: HostBench, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Logits of every row at its real tokens."""
    logits = bench.host(**inputs).logits
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    return [row[keep != 0] for row, keep in zip(logits, mask, strict=True)]
