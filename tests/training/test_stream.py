"""Rows that come one after the other train like rows with places."""

import io
import logging

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from tests.conftest import image
from tests.training.conftest import ROWS, turns
from tokenflex.errors import ConfigError, DataError
from tokenflex.training import ChatDataset, ChatStream, FeedbackStore, FlexTrainer, RGLFTrainer
from tokenflex.training import score as score_data

TEXTS = [{"id": str(i), "messages": turns(f"w{i}", f"w{i + 1}")} for i in range(9)]


def encoded(image):
    held = io.BytesIO()
    image.save(held, "PNG")
    return {"bytes": held.getvalue(), "path": None}


@pytest.fixture
def pictured():
    """A saved-like data set with images of two kinds of rows: one, and two of them."""
    rows = [{"images": [encoded(image(i)), encoded(image(i + 9))][: 1 + i % 2],
             "messages": turns("<image> w1" + " <image>" * (i % 2), f"w{i}")} for i in range(4)]  # fmt: skip
    features = datasets.Features(
        {"images": datasets.List(datasets.Image()),
         "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})}
    )  # fmt: skip
    return datasets.Dataset.from_list(rows, features=features)


def names(samples):
    return [sample.name for sample in samples]


def same(one, other):
    return one.messages == other.messages and [i.tobytes() for i in one.images] == [i.tobytes() for i in other.images]


def test_the_samples_are_those_of_a_dataset(pictured):
    placed = ChatDataset(pictured)
    for stream in (ChatStream(pictured.to_iterable_dataset()), ChatStream(pictured), ChatStream(list(pictured))):
        assert all(same(one, placed[i]) for i, one in enumerate(stream))
        assert names(stream) == [f"row {i}" for i in range(4)]


def test_bad_rows_raise_or_are_skipped(caplog):
    rows = [*TEXTS[:2], {"id": "bad", "messages": turns("w1")}, TEXTS[2]]
    with pytest.raises(DataError, match=r"row 2 \(id 'bad'\) has no answer"):
        list(ChatStream(rows))
    stream = ChatStream(rows, on_bad_sample="skip")
    with caplog.at_level(logging.WARNING, logger="tokenflex"):
        assert names(stream) == names(stream) == ["row 0 (id '0')", "row 1 (id '1')", "row 3 (id '2')"]
    assert len(caplog.records) == 1
    assert "has no answer" in stream.skipped["2"]
    with pytest.raises(DataError, match="none of the stream's rows can be used; the first: row 0"):
        list(ChatStream([{}, {}], on_bad_sample="skip"))


def test_a_broken_source_is_our_error():
    def rows():
        yield TEXTS[0]
        raise OSError("the disk is gone")

    stream = iter(ChatStream(datasets.IterableDataset.from_generator(rows), on_bad_sample="skip"))
    next(stream)
    with pytest.raises(DataError, match=r"row 1 can't be read \(OSError: the disk is gone\)"):
        next(stream)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            datasets.IterableDatasetDict({"train": datasets.Dataset.from_list(TEXTS).to_iterable_dataset()}),
            "train; give",
        ),
        (iter(TEXTS), "list_iterator can be read once"),
    ],
)
def test_what_is_no_stream_of_rows_is_refused(rows, message):
    with pytest.raises(DataError, match=message):
        ChatStream(rows)


def test_a_dataset_refuses_streams():
    with pytest.raises(DataError, match="IterableDataset has no length or no places; use ChatStream"):
        ChatDataset(datasets.Dataset.from_list(TEXTS).to_iterable_dataset())  # pyright: ignore
    with pytest.raises(DataError, match="on_bad_sample='later'; use 'raise' or 'skip'"):
        ChatStream(TEXTS, on_bad_sample="later")


@pytest.mark.parametrize("shards", [None, 1, 3])
def test_workers_share_the_rows(shards):
    rows = TEXTS if shards is None else datasets.Dataset.from_list(TEXTS).to_iterable_dataset(num_shards=shards)
    loader = DataLoader(ChatStream(rows), batch_size=2, num_workers=2, collate_fn=list)  # pyright: ignore
    seen = [sample.messages[0]["content"][0]["text"] for batch in loader for sample in batch]
    assert sorted(seen) == [f"w{i}" for i in range(9)]


def test_the_epoch_reaches_rows_that_shuffle_by_it():
    stream = ChatStream(datasets.Dataset.from_list(TEXTS).to_iterable_dataset().shuffle(seed=1, buffer_size=9))
    orders = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        orders.append([sample.messages[0]["content"][0]["text"] for sample in stream])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_training_is_that_of_a_dataset(pictured, fresh, arguments, collator):
    """Also without a `ChatDataset`, and above all, no image is cut off where rows have several."""
    settings = {"train_sampling_strategy": "sequential", "max_steps": 1, "per_device_train_batch_size": 2}
    streams = ChatStream(pictured.to_iterable_dataset()), pictured.to_iterable_dataset()
    losses = []
    for data in (ChatDataset(pictured), *streams):
        trainer = FlexTrainer(fresh(), arguments(**settings), stage=1, train_dataset=data, data_collator=collator)
        losses.append((trainer.train().training_loss, trainer.evaluate(data)["eval_loss"]))
    assert all(loss == pytest.approx(losses[0], rel=1e-5) for loss in losses)


def test_a_stopped_run_goes_on(fresh, arguments, collator, tmp_path):
    stream = ChatStream(datasets.Dataset.from_list(TEXTS).to_iterable_dataset())

    def trainer(flex, name, steps):
        args = arguments(output_dir=str(tmp_path / name), max_steps=steps, save_strategy="steps", save_steps=2,
                         lr_scheduler_type="constant", warmup_steps=0, per_device_train_batch_size=1)  # fmt: skip
        return FlexTrainer(flex, args, stage=2, train_dataset=stream, data_collator=collator)

    whole, half, rest = (fresh() for _ in range(3))
    trainer(whole, "whole", 3).train()
    trainer(half, "half", 2).train()
    trainer(rest, "half", 3).train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    for one, other in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(one, other)


def test_streams_need_max_steps(fresh, arguments, collator, pictured):
    data = ChatStream(pictured.to_iterable_dataset())
    with pytest.raises(ConfigError, match=r"ChatStream without a length.* Set max_steps"):
        FlexTrainer(fresh(), arguments(max_steps=-1), stage=1, train_dataset=data, data_collator=collator)


def test_feedback_needs_places(fresh, arguments, collator, tmp_path):
    store, stream = tmp_path / "store", ChatStream(TEXTS)
    with pytest.raises(ConfigError, match=r"a ChatStream has none.* ChatDataset"):
        score_data(fresh(), stream, collator, store, progress=False)
    score_data(fresh(), ChatDataset(TEXTS), collator, store, progress=False)
    with pytest.raises(ConfigError, match=r"a ChatStream has none.* ChatDataset"):
        RGLFTrainer(fresh(), arguments(), feedback=FeedbackStore(store), train_dataset=stream, data_collator=collator)


def test_rows_go_to_the_collator_as_they_are(collator, processor, tmp_path):
    """Both formats; a bad row is named by its place in the batch."""
    placed = ChatDataset(ROWS)
    expected = collator([placed[i] for i in range(4)])
    assert all(value.equal(expected[key]) for key, value in collator(list(ROWS)).items())
    image(0).save(tmp_path / "a.png")
    row = {"id": 7, "image": "a.png", "conversations": [
        {"from": "human", "value": "<image> w1"}, {"from": "gpt", "value": "w2"}]}  # fmt: skip
    within = type(collator)(processor, image_folder=tmp_path)
    assert within([row])["pixel_values"].shape[0] == 1
    with pytest.raises(DataError, match=r"row 1 of the batch \(id 7\): .*b\.png"):
        within([row, row | {"image": "b.png"}])
    with pytest.raises(DataError, match="row 0 of the batch is a int; expected a mapping"):
        collator([3])
