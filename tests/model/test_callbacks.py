"""Whatever counts, counts in the caller's prompt, at every level."""

import pytest
import torch
from transformers import (
    LogitsProcessor,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

LEVELS = [0, 2, "finest"]


class AfterThree(StoppingCriteria):
    """As people write it: three tokens more than the prompt they passed."""

    def __init__(self, prompt):
        self.length, self.seen = prompt.shape[1], []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append(input_ids.clone())
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length + 3)


class Scripted(LogitsProcessor):
    """Forces token 20 + n as the n-th new one."""

    def __init__(self, prompt):
        self.length = prompt.shape[1]

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, float("-inf"))
        forced[:, 20 + input_ids.shape[1] - self.length] = 0
        return forced


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
@torch.no_grad()
def test_stopping_criteria(flex, left, level, options):
    criterion = AfterThree(left["input_ids"])
    out = flex.generate(
        **left, level=level, stopping_criteria=[criterion], max_new_tokens=8, min_new_tokens=8, **options
    )
    assert out.shape[1] == left["input_ids"].shape[1] + 3
    for ids in criterion.seen:
        fronts = ids[:, : left["input_ids"].shape[1]].unflatten(0, (len(left["input_ids"]), -1))
        assert torch.equal(fronts, left["input_ids"][:, None].expand_as(fronts))


@pytest.mark.parametrize("level", LEVELS)
@torch.no_grad()
def test_logits_processors(flex, left, level):
    out = flex.generate(**left, level=level, logits_processor=[Scripted(left["input_ids"])], max_new_tokens=3)
    assert out[:, -3:].tolist() == [[20, 21, 22]] * 3


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
@torch.no_grad()
def test_prefix_allowed_tokens(flex, left, level, options):
    prompt, seen = left["input_ids"], []

    def allowed(row, ids):
        seen.append(ids[: prompt.shape[1]].tolist())
        return [20 + len(ids) - prompt.shape[1]]

    out = flex.generate(**left, level=level, prefix_allowed_tokens_fn=allowed, max_new_tokens=3, **options)
    assert out[:, -3:].tolist() == [[20, 21, 22]] * len(out)
    assert sorted(map(tuple, {tuple(front) for front in seen})) == sorted(map(tuple, prompt.tolist()))


@pytest.mark.parametrize("level", LEVELS)
@torch.no_grad()
def test_the_librarys_own_keep_their_type_and_count_alike(flex, left, level):
    length = left["input_ids"].shape[1]
    stops = StoppingCriteriaList([MaxLengthCriteria(length + 4)])
    out = flex.generate(**left, level=level, stopping_criteria=stops, eos_token_id=None)
    assert out.shape[1] == length + 4
    assert stops[0].max_length == length + 4
    host = flex.host.generate(**left, stopping_criteria=stops, eos_token_id=None)
    assert host.shape == out.shape
    longest = MinLengthLogitsProcessor(length + 5, eos_token_id=list(range(60)))
    with_minimum = flex.generate(
        **left, level=level, logits_processor=[longest], eos_token_id=list(range(60)), max_new_tokens=8
    )
    plain = flex.host.generate(**left, logits_processor=[longest], eos_token_id=list(range(60)), max_new_tokens=8)
    assert with_minimum.shape == plain.shape


class Recorder(BaseStreamer):
    def __init__(self):
        self.values, self.ended = [], False

    def put(self, value):
        self.values.append(value)

    def end(self):
        self.ended = True


@pytest.mark.parametrize("level", LEVELS)
@torch.no_grad()
def test_streamers_are_given_the_callers_prompt_first(flex, batch, level):
    inputs, recorder = batch("w1 <image> w2"), Recorder()
    out = flex.generate(**inputs, level=level, streamer=recorder, max_new_tokens=3)
    assert torch.equal(recorder.values[0], inputs["input_ids"])
    assert torch.cat([value.flatten() for value in recorder.values[1:]]).tolist() == out[0, -3:].tolist()
    assert recorder.ended
