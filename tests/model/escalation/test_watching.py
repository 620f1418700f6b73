"""What is read while the host generates: which tokens are the answer, and how sure the host was of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model.escalation.test_escalate import answers, model, words
from tokenflex import Escalate
from tokenflex.hosts.grouped import Options
from tokenflex.model.escalation.watching import answer_mask, padding, side_by_side

PAD, END = 0, 2


def told(**options):
    return Options(None, {"eos_token_id": END, "pad_token_id": PAD, **options})


@given(st.lists(st.lists(st.integers(3, 9), max_size=4), min_size=1, max_size=4), st.booleans())
def test_an_answer_goes_up_to_the_token_that_ends_it(texts, ended):
    width = max(len(text) for text in texts) + 1
    new = torch.full((len(texts), width), PAD)
    for row, text in zip(new, texts, strict=True):
        row[: len(text) + 1] = torch.tensor([*text, END])
    mask = answer_mask(new, told())
    assert mask.sum(-1).tolist() == [len(text) + 1 for text in texts]
    assert torch.equal(side_by_side([row[at] for row, at in zip(new, mask, strict=True)], PAD), new)


def test_answers_that_do_not_end():
    new = torch.tensor([[5, PAD, 6], [PAD, PAD, PAD], [7, 8, PAD]])
    assert answer_mask(new, told()).all(), "padding is a token like others where nothing ended"
    stopped = answer_mask(new, told(stopping_criteria=[object()]))
    assert stopped.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert answer_mask(new, told(eos_token_id=None)).all()
    assert answer_mask(new, told(eos_token_id=torch.tensor([8, 6]))).tolist() == [
        [True] * 3,
        [True] * 3,
        [True, True, False],
    ]


def test_padding():
    assert padding(told()) == PAD
    assert padding(told(pad_token_id=None)) == END
    assert padding(told(pad_token_id=None, eos_token_id=[4, 5])) == 4
    assert padding(told(pad_token_id=torch.tensor(7))) == 7


BY_HAND = {
    "first-margin": lambda steps: steps[0].topk(2).values.diff().abs().item(),
    "first-probability": lambda steps: steps[0].max().item(),
    "first-entropy": lambda steps: (steps[0] * steps[0].log()).nansum().item(),
    "mean-log-probability": lambda steps: sum(step.max().log().item() for step in steps) / len(steps),
    "min-margin": lambda steps: min(step.topk(2).values.diff().abs().item() for step in steps),
}


@pytest.mark.parametrize("measure", sorted(BY_HAND))
def test_confidences_are_those_of_the_scores(measure):
    """Worked out again from all scores of a plain answer; rows end after one, two and more tokens."""
    flex, inputs = model()
    length = inputs["input_ids"].shape[1]
    free = flex.generate(**inputs, level=0, **words(flex, max_new_tokens=6))[:, length:]
    options = words(flex, max_new_tokens=6, eos_token_id=[int(free[0, 0]), int(free[2, 1])])
    plain = flex.generate(**inputs, level=0, **options, return_dict_in_generate=True, output_scores=True)
    out = answers(flex, inputs, Escalate(threshold=1e9, measure=measure, levels=(0,)), return_dict_in_generate=True,
                  **{key: options[key] for key in ("max_new_tokens", "eos_token_id")})  # fmt: skip
    sizes = []
    for row, image in {0: 0, 2: 1, 4: 3}.items():
        said = plain.sequences[row, length:].tolist()
        size = next((i + 1 for i, token in enumerate(said) if token in options["eos_token_id"]), len(said))
        sizes.append(size)
        steps = [scores[row].softmax(-1) for scores in plain.scores[:size]]
        assert out.decisions[image].tried[0].confidence == pytest.approx(BY_HAND[measure](steps), abs=1e-4)
    assert min(sizes) == 1
    assert len(set(sizes)) > 1
