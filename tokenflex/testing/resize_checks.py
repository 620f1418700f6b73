"""The law of smaller images: text, counts, places and tokens are those of a smaller image.

What a processor makes of a smaller image is compared, where its class can be built without a checkpoint, by tests of
the adapters; here are the laws that hold for all hosts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenflex.contracts import HostBatch, Spliced
from tokenflex.testing.bench import Skip
from tokenflex.testing.host_bench import FINEST, ROWS, SCALER, HostBench, close, labels_of, off, snapshot
from tokenflex.testing.zoo.recipe import A_VIDEO, AN_IMAGE, WORD, Row

SHARES = (0.25, 0.5, 1.0)
"""Of images in a batch, one after the other."""
LADDER = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
VIDEOS: Sequence[Row] = ((1, A_VIDEO, 2), (3, 4, A_VIDEO, 5, A_VIDEO, 8), (6, 7))


def smaller_images_are_images(bench: HostBench) -> None:
    """Every claim of the law, for images and, where there are any, for videos."""
    refused = bench.adapter.resize_refusal
    if refused is not None:
        raise Skip(refused)
    for claim in CLAIMS:
        claim(bench, ROWS)
    if bench.tiny.videos is not None:
        for claim in CLAIMS:
            claim(bench, VIDEOS)


def shares_for(batch: HostBatch, first: int = 0) -> list[float]:
    """A share for every image of a batch, as they come in turn from the ``first`` on."""
    return [SHARES[(first + i) % len(SHARES)] for i in range(len(batch.spans))]


def resized(bench: HostBench, inputs: Mapping[str, Any], first: int = 0, side: Any = None) -> Spliced:
    """The batch of smaller images for the host.

    Args:
        first: number of the batch's first image among those that take `SHARES` in turn.
    """
    batch = bench.adapter.read(inputs)
    return spliced(bench, batch, shares_for(batch, first), side)


def spliced(bench: HostBench, batch: HostBatch, shares: Sequence[float], side: Any = None) -> Spliced:
    """The batch with its images at any shares of their sizes, for the host."""
    images = bench.adapter.encode_resized(batch, shares, range(len(shares))) if shares else ()
    scaled = [SCALER.scale(image, FINEST) for image in images]
    return bench.adapter.splice(bench.adapter.resized(batch, shares), images, scaled, side)


def full_size_is_untouched(bench: HostBench, rows: Sequence[Row]) -> None:
    """Shares of 1: the batch itself, and its tokens; some of them alone too."""
    inputs = bench.batch(rows)
    batch = bench.adapter.read(inputs)
    shares = [1.0] * len(batch.spans)
    assert bench.adapter.resized(batch, shares) is batch, "finest: the batch isn't given back as it is"
    made = spliced(bench, batch, shares)
    expected = bench.plainly(lambda: bench.host(**inputs).logits)
    found = bench.host(**made.inputs).logits
    assert torch.equal(expected, found), f"finest: logits differ by {off(expected, found)}"
    full = bench.adapter.encode(batch)
    for chosen in (range(len(shares)), range(1, len(shares))):
        for i, image in zip(chosen, bench.adapter.encode_resized(batch, shares, chosen), strict=True):
            assert image.row == full[i].row, f"finest: image {i} stands in row {image.row}, not {full[i].row}"
            close(image.features, full[i].features, f"finest: features of image {i} by itself")


def counts_come_first(bench: HostBench, rows: Sequence[Row]) -> None:
    """No module of the host runs before the tokens of every size are known; smaller images never have more."""
    batch = bench.adapter.read(bench.batch(rows))
    calls: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_pre_hook(lambda module, _: calls.append(module))
    counts: list[Tensor] = []
    try:
        for share in LADDER:
            small = bench.adapter.resized(batch, [share] * len(batch.spans))
            counts.append(bench.adapter.count(small, [[grid] for grid in small.grids])[:, 0])
    finally:
        handle.remove()
    assert not calls, f"count: {type(calls[0]).__name__} ran before features were asked for"
    table = torch.stack(counts)
    assert (table.diff(dim=0) >= 0).all(), f"count: sizes have {table.tolist()} tokens, which don't ascend"
    for share, expected in zip(LADDER, table, strict=True):
        made = spliced(bench, batch, [share] * len(batch.spans))
        assert list(made.tokens) == expected.tolist(), (
            f"count: {made.tokens} tokens at {share}, told {expected.tolist()}"
        )


def neighbours_change_nothing(bench: HostBench, rows: Sequence[Row]) -> None:
    """A batch of mixed shares has its singles' logits, for hosts whose full batches have them."""
    if "batch" in bench.tiny.exceptions:
        return
    together = _real_rows(bench, resized(bench, bench.batch(rows)))
    images = units = 0
    for number, row in enumerate(rows):
        inputs = bench.batch((row,), first=images)
        images += sum(item in (AN_IMAGE, A_VIDEO) for item in row)
        alone = _real_rows(bench, resized(bench, inputs, units))[0]
        units += len(bench.adapter.read(inputs).spans)
        close(together[number], alone, f"batch: row {number} in the batch and alone")


def padding_changes_nothing(bench: HostBench, rows: Sequence[Row]) -> None:
    """Left, right, and moved from one side to the other."""
    batches = {side: bench.batch(rows, side=side) for side in ("left", "right")}
    found = [_real_rows(bench, resized(bench, inputs)) for inputs in batches.values()]
    found.append(_real_rows(bench, resized(bench, batches["right"], side="left")))
    for variants in zip(*found, strict=True):
        for other in variants[1:]:
            close(other, variants[0], "padding: left and right")


def answers_stay(bench: HostBench, rows: Sequence[Row]) -> None:
    """The same words carry loss, whatever size the images have."""
    inputs = bench.batch(rows, side="right")
    labels = labels_of(inputs)
    found = resized(bench, {**inputs, "labels": labels}).inputs["labels"]
    for row, expected in zip(found, labels, strict=True):
        assert row[row >= 0].tolist() == expected[expected >= 0].tolist(), "labels: other words carry loss"


def origins_are_told(bench: HostBench, rows: Sequence[Row]) -> None:
    """Every word of the smaller batch is that of the batch it was made from, in order; all words are there."""
    inputs = bench.batch(rows)
    batch = bench.adapter.read(inputs)
    small = bench.adapter.resized(batch, shares_for(batch))
    origin, ids, full = small.origin, small.cpu["input_ids"], inputs["input_ids"]
    assert origin is not None, "origin: it isn't told"
    assert origin.shape == ids.shape, f"origin: {tuple(origin.shape)} for tokens {tuple(ids.shape)}"
    assert "pixel_values" not in small.inputs, "origin: the batch of smaller images still has the pixels"
    shown = torch.isin(ids, torch.tensor(bench.adapter.placeholder_ids))
    wrong = (origin >= 0) != (small.attended & ~shown)
    assert not wrong.any(), "origin: words have none, or placeholders and padding have one"
    for row in range(len(ids)):
        own = origin[row][origin[row] >= 0]
        assert (own.diff() > 0).all(), f"origin: words of row {row} are in another order"
        assert torch.equal(full[row][own], ids[row][origin[row] >= 0]), f"origin: row {row} has other words"
        text = full[row][full[row] >= WORD]
        assert (ids[row] >= WORD).sum() >= len(text) - _of_videos(rows[row], text), f"origin: row {row} lost words"


def host_stays(bench: HostBench, rows: Sequence[Row]) -> None:
    """The host's tensors, classes, hooks and settings are as they were, and so is what it was given."""
    inputs = bench.batch(rows)
    copies = {name: value.clone() for name, value in inputs.items()}
    bench.plainly(lambda: bench.host(**inputs))
    before = snapshot(bench.host)
    bench.host(**resized(bench, inputs).inputs)
    after = snapshot(bench.host)
    changed = [name for name, tensor in before[0].items() if not torch.equal(tensor, after[0][name])]
    assert not changed, f"untouched: the host's {changed} changed"
    assert before[1:] == after[1:], "untouched: the host's classes, hooks or settings changed"
    written = [name for name, value in copies.items() if not torch.equal(value, inputs[name])]
    assert not written, f"untouched: {written} of the batch changed"


@torch.enable_grad()
def gradients_arrive(bench: HostBench, rows: Sequence[Row]) -> None:
    """Whatever the encoder has to learn is reached from the tokens of smaller images."""
    batch = bench.adapter.read(bench.batch(rows))
    groups = bench.adapter.parameter_groups()
    learning = [p for name in ("vision_tower", "projector") for p in groups[name] if p.requires_grad]
    images = bench.adapter.encode_resized(batch, [0.25] * len(batch.spans), range(len(batch.spans)))
    total = torch.stack([image.features.float().square().sum() for image in images]).sum()
    reached = torch.autograd.grad(total, learning, allow_unused=True) if total.requires_grad else ()
    assert any(g is not None and g.abs().sum() > 0 for g in reached), "gradients: none reaches the encoder"


def text_stays(bench: HostBench, rows: Sequence[Row]) -> None:
    """Rows without images, alone and beside some."""
    batch = bench.adapter.read(bench.batch(((1, 2, 3), (4, 5))))
    assert bench.adapter.resized(batch, []) is batch, "text: a batch without images isn't given back as it is"
    assert bench.adapter.encode_resized(batch, [], []) == (), "text: a batch without images has tokens"


CLAIMS = (
    full_size_is_untouched,
    counts_come_first,
    neighbours_change_nothing,
    padding_changes_nothing,
    answers_stay,
    origins_are_told,
    host_stays,
    gradients_arrive,
    text_stays,
)


def _real_rows(bench: HostBench, made: Spliced) -> list[Tensor]:
    """Logits of every row at its real tokens; the plain host may refuse the batch."""
    logits = bench.plainly(lambda: bench.host(**made.inputs).logits)
    mask = made.inputs["attention_mask"]
    return [row[keep != 0] for row, keep in zip(logits, mask, strict=True)]


def _of_videos(row: Row, text: Tensor) -> int:
    """Words that belong to a video's frames or to tiles, which may go with them; none where a row has only text."""
    return 0 if not any(isinstance(item, str) for item in row) else len(text) - sum(isinstance(i, int) for i in row)
