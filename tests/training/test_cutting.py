"""A feedback pass that was stopped and taken up equals one that wasn't, to the last bit."""

import shutil
import sys

import pytest
import torch
from accelerate import PartialState

from tests.conftest import image
from tests.training.conftest import ROWS, turns
from tokenflex.training import ChatDataset, FeedbackStore, score
from tokenflex.training.cutting import WINDOW, Batches, extent
from tokenflex.training.store import FeedbackWriter

MANY = [
    *ROWS,
    *({"id": f"m{i}", "image": image(i), "messages": turns(f"w{i} w2", f"w{i + 3} w4 " * i)} for i in range(4, 14)),
]


class StoppedError(Exception):
    """As when the power fails."""


def as_process(monkeypatch, rank, processes):
    """What a process of several sees of the others: nothing, as long as it waits for nobody."""
    monkeypatch.setitem(PartialState._shared_state, "process_index", rank)
    monkeypatch.setitem(PartialState._shared_state, "num_processes", processes)
    monkeypatch.setattr(PartialState, "is_main_process", property(lambda state: rank == 0))
    monkeypatch.setattr(PartialState, "wait_for_everyone", lambda state: None)
    monkeypatch.setattr(sys.modules[score.__module__], "_complete", FeedbackStore)


def scored(flex, collator, folder, **settings):
    given = {
        "batch_size": 3,
        "part_size": 3,
        "progress": False,
        "router_inputs": "auto",
        "router_inputs_at": "projector",
    } | settings
    return score(flex, ChatDataset(MANY), collator, folder, **given)


def same_bits(one, other):
    assert one.ids.tolist() == other.ids.tolist() == list(range(len(MANY)))
    for name in ("nll", "answer_tokens", "visual_tokens"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for place in one.ids.tolist():
        (images, words), (others, told) = one.kept(place), other.kept(place)
        assert torch.equal(words.embeddings, told.embeddings)
        assert all(torch.equal(a.features, b.features) for a, b in zip(images, others, strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, flex, processor):
    from tokenflex.training import FlexCollator

    return scored(flex, FlexCollator(processor), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("shards", [0, 1, 3, 4])
def test_stopped_after_any_number_of_shards(flex, collator, whole, tmp_path, monkeypatch, shards):
    write = FeedbackWriter.write

    def failing(self, samples):
        if self._shards.number == shards:
            raise StoppedError
        write(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(FeedbackWriter, "write", failing)
        with pytest.raises(StoppedError):
            scored(flex, collator, tmp_path)
    assert len(FeedbackStore(tmp_path)) == 3 * shards
    same_bits(scored(flex, collator, tmp_path, part_size=7), whole)


@pytest.mark.parametrize("lost", [[(0, 0)], [(1, 1), (0, 2)]])
def test_two_processes_whose_parts_are_lost_here_and_there(flex, collator, whole, tmp_path, monkeypatch, lost):
    for rank in (0, 1):
        with monkeypatch.context() as patch:
            as_process(patch, rank, 2)
            scored(flex, collator, tmp_path)
    same_bits(FeedbackStore(tmp_path), whole)
    for rank, number in lost:
        (tmp_path / f"part-{rank:05d}-{number:05d}.parquet").unlink()
    same_bits(scored(flex, collator, tmp_path), whole)


def test_a_row_missing_from_a_batch_is_scored_in_its_company(flex, collator, whole, tmp_path, monkeypatch):
    """As after a pass with batches of another size: of the batch only the missing rows are written."""
    write = FeedbackWriter.write
    with monkeypatch.context() as patch:
        patch.setattr(FeedbackWriter, "write", lambda self, samples: write(self, samples[1:]))
        patch.setattr(sys.modules[score.__module__], "_complete", FeedbackStore)
        assert len(scored(flex, collator, tmp_path)) == len(MANY) - 5
    same_bits(scored(flex, collator, tmp_path), whole)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 5, 33, 97])
def test_every_sample_is_in_one_batch_whoever_takes_it(rows, size, processes):
    data = ChatDataset([{"messages": turns("w1 " * (7 * i % 11), "w2")} for i in range(rows)])
    alone = {}
    for rank in range(processes):
        mine = Batches(data, len, size, (rank, processes))
        cut = list(mine.left(range(rows), 0))
        assert sum(count for count, _, _ in cut) == mine.samples == sum(len(places) for _, places, _ in cut)
        alone |= {tuple(places): rank for _, places, _ in cut}
    assert sorted(place for places in alone for place in places) == list(range(rows))
    one = [tuple(places) for _, places, _ in Batches(data, len, size, (0, 1)).left(range(rows), 0)]
    assert set(one) == set(alone)
    half = [places for _, places, _ in Batches(data, len, size, (0, 1)).left(range(0, rows, 2), 0) if places]
    assert all(tuple(places) in alone and any(place % 2 == 0 for place in places) for places in half)


def test_complete_windows_are_not_read():
    class Unread(ChatDataset):
        def extent(self, place):
            assert place >= 2 * WINDOW
            return super().extent(place)

    data = Unread([{"messages": turns("w1", "w2")}] * (2 * WINDOW + 3))
    cut = list(Batches(data, len, 2, (0, 1)).left([2 * WINDOW + 1], 0))
    assert [count for count, _, _ in cut] == [2] * (WINDOW + 1) + [1]
    assert sum(bool(places) for _, places, _ in cut) == 1


def test_extents_need_no_decoding(tmp_path, monkeypatch):
    image(0).save(tmp_path / "0.png")
    data = ChatDataset([*ROWS, {"image": "0.png", "messages": turns("w1", "w2")}, {"messages": 3}], tmp_path)

    def read(place):
        sample = data[place]
        return sum(i.width * i.height for i in sample.images), sum(
            len(part.get("text", "")) for message in sample.messages for part in message["content"]
        )

    told = [read(place) for place in range(5)]
    monkeypatch.setattr("tokenflex.training.data.decode", None)
    assert [extent(data, place) for place in range(6)] == [*told, (0, 0)]
    shutil.rmtree(tmp_path)
