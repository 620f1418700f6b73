"""The code of ``docs/use.md``, run on a tiny model; its names are those of the code."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import tokenflex
from tests.conftest import TEXTS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "use.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_promise(flex, batch):
    batches = [batch(*TEXTS, *TEXTS, first=i) for i in range(4)]
    names = {"tokenflex": tokenflex, "flex": flex, "batches": batches, "inputs": batches[0]}
    few = BLOCKS[0].replace("max_new_tokens=16", "max_new_tokens=1").replace("risk=0.02", "risk=0.5")
    before = flex.escalate
    try:
        exec(few, names)
        assert flex.escalate.calibrated.rows == 24
    finally:
        flex.escalate = before


def test_the_conversation(flex, processor, batch):
    from transformers.generation import GenerateDecoderOnlyOutput

    if "cache" not in GenerateDecoderOnlyOutput.__dataclass_fields__:
        pytest.skip("transformers before 5.24 calls the cache past_key_values")
    names = {"torch": torch, "flex": flex, "processor": processor, "inputs": batch("user : <image> w1 w2 assistant :")}
    exec(BLOCKS[1], names)
    assert names["out"].compact_sequences.shape[1] > names["ids"].shape[1]
    assert len(BLOCKS) == 2


def test_budgets_of_the_table(flex, batch):
    known = {field.name for field in dataclasses.fields(tokenflex.Budget)}
    shown = re.findall(r"`Budget\(([^)]*)\)`", PAGE)
    assert {name for one in shown for name in re.findall(r"(\w+)=", one)} <= known
    inputs = batch("user : <image> w1 w2 assistant :")
    for one in shown:
        budget = eval(f"Budget({one.replace('...', 'ratio=0.5')})", {"Budget": tokenflex.Budget})
        (decision,) = flex.decide(**inputs, budget=budget)
        assert decision.tokens <= decision.of
    short, long = (flex.decide(**inputs, budget=one)[0].tokens for one in (0.3, tokenflex.Budget(ratio=0.3)))
    assert short == long


def test_links_point_at_files():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", PAGE):
        assert (DOCS / target).exists(), target
