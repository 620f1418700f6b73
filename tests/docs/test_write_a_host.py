"""``docs/write_a_host.md`` runs as it stands, and its adapter keeps the laws."""

import re
from pathlib import Path

import pytest
import torch

import tokenflex
from tokenflex.errors import InputError, UnsupportedHostError

PAGE = Path(__file__).parents[2] / "docs" / "write_a_host.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def page():
    names = {}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_page_runs(page):
    assert page["answer"].shape == (2, 19 + 4)


def test_the_adapter_is_short():
    (adapter,) = (block for block in BLOCKS if "class MyAdapter" in block)
    assert len(adapter.strip().splitlines()) < 50


def test_finest_level_is_the_plain_model(page):
    model, flex, batch = page["model"], page["flex"], page["batch"]
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, flex(**batch, level=-1).logits)
    for max_new_tokens in (1, 6):
        expected = model.generate(**batch, max_new_tokens=max_new_tokens)
        assert torch.equal(expected, flex.generate(**batch, level=-1, max_new_tokens=max_new_tokens))


def test_padding_side_does_not_matter(page):
    flex, batch = page["flex"], page["batch"]
    right = {**batch, "input_ids": batch["input_ids"].clone(), "attention_mask": batch["attention_mask"].clone()}
    for key in ("input_ids", "attention_mask"):
        right[key][1] = right[key][1].roll(-1)
    for level in (0, -1):
        expected = flex.generate(**batch, level=level, max_new_tokens=4)[:, -4:]
        assert torch.equal(expected, flex.generate(**right, level=level, max_new_tokens=4)[:, -4:])


def test_several_images_and_text_only_rows(page):
    flex, image = page["flex"], page["image"]
    ids = torch.tensor([[*image, 9, *image], [*[page["PAD"]] * 30, 9, 10, 11]])
    batch = {
        "input_ids": ids,
        "attention_mask": torch.cat([torch.ones(1, 33), torch.tensor([[0.0] * 30 + [1.0] * 3])]).long(),
        "pixel_values": torch.randn(2, 3, 32, 32),
    }
    with torch.no_grad():
        assert torch.equal(page["model"](**batch).logits, flex(**batch, level=-1).logits)
    assert [d.tokens for d in flex.decide(**batch, level=[0, -1])] == [1, 16]
    with pytest.raises(InputError, match="placeholder"):
        flex(**{**batch, "pixel_values": batch["pixel_values"][:1]})


def test_labels_and_training(page):
    flex, batch = page["flex"], page["batch"]
    labels = batch["input_ids"].masked_fill(batch["input_ids"] < 11, -100)
    expected = page["model"](**batch, labels=labels).loss
    assert torch.equal(expected, flex(**batch, labels=labels, level=-1).loss)
    flex(**batch, labels=labels, level=0).loss.backward()
    groups = flex.adapter.parameter_groups()
    assert all(p.grad is not None for p in groups["vision_tower"])
    assert {id(p) for group in groups.values() for p in group} == {id(p) for p in page["model"].parameters()}


def test_parts_come_back(page, tmp_path):
    flex, batch = page["flex"], page["batch"]
    flex.save_parts(tmp_path)
    again = tokenflex.load_parts(tmp_path, host=page["model"], adapter=page["MyAdapter"](page["model"]))
    expected = [d.scores for d in flex.decide(**batch)]
    assert all(torch.equal(d.scores, e) for d, e in zip(again.decide(**batch), expected, strict=True))


def test_without_an_adapter_it_is_refused(page):
    with pytest.raises(UnsupportedHostError, match=r"wrap\(host, adapter=MyAdapter\(host\)\)"):
        tokenflex.wrap(page["model"])
