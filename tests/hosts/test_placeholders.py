"""Resizing runs of placeholders: laws over random sequences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import HostBatch
from tokenflex.errors import InputError
from tokenflex.hosts import placeholders

IMAGE, PAD = 99, 0
WORDS = st.lists(st.integers(1, 50), max_size=4)


@st.composite
def batches(draw):
    """(ids, mask, labels, full, kept): rows of text and runs, padded on one side."""
    rows, full = [], []
    for _ in range(draw(st.integers(1, 3))):
        row = draw(WORDS) or [1]
        for _ in range(draw(st.integers(0, 2))):
            full.append(draw(st.integers(1, 6)))
            row = [*row, *[IMAGE] * full[-1], *draw(WORDS)]
        rows.append(row)
    kept = [draw(st.integers(1, 8)) for _ in full]
    side = draw(st.sampled_from(["left", "right"]))
    length = max(map(len, rows))
    fill = [[PAD] * (length - len(row)) for row in rows]
    ids = torch.tensor([f + r if side == "left" else r + f for f, r in zip(fill, rows, strict=True)])
    mask = (ids != PAD).long()
    labels = torch.where((ids % 2 == 1) & (mask == 1), ids, -100)
    return ids, mask, labels, full, kept


def read(ids, spans, **inputs):
    given = {"input_ids": ids, **inputs}
    return HostBatch(given, placeholders.on_cpu(given), tuple(spans), ())


def planned(ids, mask, full, kept, side=None, rows=None, **inputs):
    """(batch, plan)"""
    batch = read(ids, placeholders.locate(ids == IMAGE, full), attention_mask=mask, **inputs)
    return batch, placeholders.plan(batch, [(size,) for size in kept], side, rows)


@given(batches(), st.sampled_from([None, "left", "right"]))
def test_text_stays_and_runs_get_their_size(batch, side):
    ids, mask, labels, full, kept = batch
    read_batch, plan = planned(ids, mask, full, kept, side, labels=labels)
    out = placeholders.apply(plan, read_batch, PAD)
    image = iter(kept)
    owners = [span.row for span in placeholders.locate(ids == IMAGE, full)]
    for row in range(len(ids)):
        before = ids[row][(ids[row] != IMAGE) & (mask[row] == 1)]
        attended = out["attention_mask"][row] == 1
        after = out["input_ids"][row][attended]
        assert after[after != IMAGE].tolist() == before.tolist()
        assert int((after == IMAGE).sum()) == sum(next(image) for _ in range(owners.count(row)))
        text = (out["input_ids"][row] != IMAGE) & attended
        assert out["labels"][row][text].tolist() == labels[row][(ids[row] != IMAGE) & (mask[row] == 1)].tolist()
        assert (out["labels"][row][~text] == -100).all()
        if side is not None and bool((~attended).any()):
            assert bool(attended[-1 if side == "left" else 0])


@given(batches())
def test_index_points_back_at_the_same_tokens(batch):
    ids, mask, _, full, kept = batch
    read_batch, plan = planned(ids, mask, full, kept)
    out = placeholders.apply(plan, read_batch, PAD)
    index = placeholders.index(plan)
    rows = torch.arange(len(ids))[:, None].expand_as(index)
    there = index >= 0
    assert torch.equal(ids[rows[there], index[there]], out["input_ids"][there])


@given(batches())
def test_nothing_to_resize_is_the_callers_own_batch(batch):
    ids, mask, _, full, _ = batch
    read_batch, plan = planned(ids, mask, full, full)
    assert plan.unchanged
    assert placeholders.apply(plan, read_batch, PAD)["input_ids"] is ids


@given(batches(), st.data())
def test_some_rows_alone_are_the_batchs_rows_without_their_padding(batch, data):
    ids, mask, labels, full, kept = batch
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=len(ids), unique=True))
    side = data.draw(st.sampled_from(["left", "right"]))
    whole_batch, whole = planned(ids, mask, full, kept, side, labels=labels)
    part_batch, part = planned(ids, mask, full, kept, side, rows, labels=labels)
    out, some = placeholders.apply(whole, whole_batch, PAD), placeholders.apply(part, part_batch, PAD)
    lengths = [int(some["attention_mask"][i].sum()) for i in range(len(rows))]
    assert some["input_ids"].shape == (len(rows), max(lengths))
    for i, row in enumerate(rows):
        for key in ("input_ids", "labels"):
            one, other = some[key][i][some["attention_mask"][i] == 1], out[key][row][out["attention_mask"][row] == 1]
            assert one.tolist() == other.tolist()
    images = placeholders.standing_in(part_batch, rows)
    assert [part_batch.rows[i] for i in images] == [row for row in rows for owner in part_batch.rows if owner == row]


def test_runs_shrink_one_by_one_and_words_behind_an_empty_run_go_with_it():
    """Three rows of two tokens, a break behind each, the last one an end: one row of one token keeps the end."""
    ids = torch.tensor([[1, IMAGE, IMAGE, 7, IMAGE, IMAGE, 7, IMAGE, IMAGE, 8, 2]])
    batch = read(ids, placeholders.locate(ids == IMAGE, [6]))

    def shortened(*sizes):
        return placeholders.apply(placeholders.plan(batch, [sizes], None), batch, PAD)["input_ids"].tolist()

    assert shortened(1, 0, 1) == [[1, IMAGE, 7, IMAGE, 8, 2]]
    assert shortened(0, 0, 2) == [[1, IMAGE, IMAGE, 8, 2]]
    with pytest.raises(InputError, match="form 3 runs, but 2 are expected"):
        shortened(1, 1)


def test_images_of_two_kinds_keep_their_places():
    ids = torch.tensor([[1, IMAGE, IMAGE, 5, 98, 98, 98, IMAGE, 2]])
    images, videos = placeholders.locate(ids == IMAGE, [2, 1]), placeholders.locate(ids == 98, [3])
    batch = read(ids, [*images, *videos])
    plan = placeholders.plan(batch, [(1,), (1,), (2,)], None)
    assert placeholders.apply(plan, batch, PAD)["input_ids"].tolist() == [[1, IMAGE, 5, 98, 98, IMAGE, 2]]
    assert plan.visual.tolist() == [[False, True, False, True, True, True, False]]
