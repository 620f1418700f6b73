"""Thresholds that are calibrated: found as promised, kept with the model, refused for other answers."""

import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText

import tokenflex
from tests.hosts.served import served
from tokenflex import Budget, Escalate
from tokenflex.errors import ConfigError, InputError
from tokenflex.ops.risk import rows_needed
from tokenflex.testing.zoo.recipe import AN_IMAGE

ROWS = ((1, 2, AN_IMAGE, 3), (4, 5, 6), (AN_IMAGE, 9, AN_IMAGE, 11), (3, AN_IMAGE, 5, 7), (AN_IMAGE, 2, 5))
WITH_IMAGES = 4
LOOSE = {"risk": 0.5, "confidence": 0.5}
"""A promise that few rows are enough for."""
NEW = {"max_new_tokens": 3}


@pytest.fixture(scope="module")
def flex():
    torch.manual_seed(0)
    return tokenflex.wrap(served("llava_next").build(), voter="mean").eval()


def batches(flex, count=3):
    tiny = served("llava_next")
    return [tiny.batch(flex.host.config, ROWS, first=4 * i) for i in range(count)]


def options(flex, **more):
    return {**NEW, "suppress_tokens": list(flex.adapter.placeholder_ids), **more}


def calibrate(flex, escalate=None, data=None, **more):
    asked = Escalate(**LOOSE) if escalate is None else escalate
    return tokenflex.calibrate(flex, asked, batches(flex) if data is None else data, **options(flex, **more))


@pytest.mark.parametrize("measure", ["first-margin", "mean-log-probability"])
def test_the_threshold_keeps_the_promise_on_its_own_sample(flex, measure):
    found = calibrate(flex, Escalate(**LOOSE, measure=measure))
    known = found.calibrated
    assert known.rows == 3 * WITH_IMAGES
    assert (known.threshold, known.risk, known.confidence) == (found.threshold, 0.5, 0.5)
    assert known.options == {
        "eos_token_id": 2,
        "max_new_tokens": 3,
        "suppress_tokens": list(flex.adapter.placeholder_ids),
    }
    differs = early = 0
    for inputs in batches(flex):
        out = flex.generate(**inputs, escalate=found, **options(flex, return_dict_in_generate=True))
        finest = flex.generate(**inputs, level="finest", **options(flex))
        for row in {0: 0, 2: 1, 3: 3, 4: 4}.items():
            differs += not torch.equal(out.sequences[row[0]], finest[row[0]])
            early += out.decisions[row[1]].level < 4
    assert differs / known.rows <= known.loss <= 0.5
    assert early / known.rows == pytest.approx(known.settled)
    assert math.isfinite(found.threshold)
    assert early > 0


def test_a_loss_of_ones_own(flex):
    targets = [["a"] * len(ROWS)] * 3
    seen = []

    def loss(answers, wanted):
        assert wanted == targets[0]
        assert len(answers) == len(ROWS)
        seen.extend(answers)
        return [0.25] * len(answers)

    data = list(zip(batches(flex), targets, strict=True))
    found = calibrate(flex, data=data, loss=loss)
    assert found.calibrated.of == "own"
    assert found.calibrated.loss == pytest.approx(0.25)
    assert found.calibrated.settled == 1
    assert all(one.dim() == 1 and 1 <= len(one) <= 3 for one in seen)
    with pytest.raises(InputError, match="even at the finest level the loss is 1"):
        calibrate(flex, loss=lambda answers, _: torch.ones(len(answers)))
    for wrong in (lambda answers, _: [0.0], lambda answers, _: [2.0] * len(answers), lambda a, _: [math.nan] * len(a)):
        with pytest.raises(InputError, match="from 0"):
            calibrate(flex, loss=wrong)


def test_never_settling_is_a_result(flex):
    """Where all but the finest level lose."""
    inputs, calls = batches(flex)[0], []

    def loss(answers, _):
        calls.append(1)
        return [float(len(calls) % flex.compressor.num_levels != 0)] * len(answers)

    found = calibrate(flex, Escalate(risk=0.2, confidence=0.9), loss=loss)
    assert found.threshold == math.inf
    assert found.calibrated.settled == 0
    assert Escalate.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))).threshold == math.inf
    out = flex.generate(**inputs, escalate=found, **options(flex))
    assert torch.equal(out, flex.generate(**inputs, level="finest", **options(flex)))


def test_the_routers_start_is_calibrated_too(flex):
    found = calibrate(flex, Escalate(**LOOSE, start="router"), budget=Budget(ratio=0.5))
    inputs = batches(flex)[0]
    assert found.calibrated.options["budget"]["ratio"] == 0.5
    asked = options(flex, return_dict_in_generate=True)
    out = flex.generate(**inputs, escalate=found, budget=0.5, **asked)
    assert all(d.scores is not None for d in out.decisions)
    with pytest.raises(InputError, match="budget="):
        flex.generate(**inputs, escalate=found, **asked)


def test_too_few_rows(flex):
    needed = rows_needed(0.05, 0.95)
    with pytest.raises(InputError, match=f"at least {needed} are needed"):
        calibrate(flex, Escalate())
    with pytest.raises(InputError, match="no images"):
        calibrate(flex, data=[])


def test_what_cannot_be_calibrated(flex):
    with pytest.raises(InputError, match="do_sample is on"):
        calibrate(flex, do_sample=True)
    with pytest.raises(InputError, match="one answer per row"):
        calibrate(flex, num_beams=2)
    with pytest.raises(InputError, match="start='router'"):
        calibrate(flex, budget=0.5)
    with pytest.raises(InputError, match="loss, max_new_tokens"):
        tokenflex.calibrate(flex, Budget(ratio=0.5), batches(flex), loss=lambda a, _: a, max_new_tokens=3)


def test_other_answers_are_refused(flex):
    found, inputs = calibrate(flex), batches(flex)[0]
    same = options(flex, return_dict_in_generate=True, output_scores=True)
    flex.generate(**inputs, escalate=found, **same)
    with pytest.raises(InputError, match="max_new_tokens=3 then, 4 now"):
        flex.generate(**inputs, escalate=found, **options(flex, max_new_tokens=4))
    with pytest.raises(InputError, match="logits_processor=None then"):
        flex.generate(**inputs, escalate=found, **options(flex, logits_processor=[lambda ids, scores: scores]))
    with pytest.raises(InputError, match="do_sample"):
        flex.generate(**inputs, escalate=found, **options(flex, do_sample=True))
    with pytest.raises(ConfigError, match="Calibrate again"):
        replace(found, threshold=0.5)
    with pytest.raises(InputError, match="other weights or settings"):
        flex.generate(**inputs, escalate=replace(found, levels=(0, 1)), **options(flex))
    by_hand = replace(found, threshold=0.5, calibrated=None)
    flex.generate(**inputs, escalate=by_hand, **options(flex, do_sample=True))
    weight = flex.host.lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(2)
    try:
        with pytest.raises(InputError, match="other weights or settings"):
            flex.generate(**inputs, escalate=found, **options(flex))
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    flex.generate(**inputs, escalate=found, **options(flex))


def test_weights_are_read_once(flex, monkeypatch):
    from tokenflex.model.escalation import fingerprint

    found, inputs, reads = calibrate(flex), batches(flex)[0], []
    monkeypatch.setattr(fingerprint, "of_tensors", lambda state: reads.append(1) or "other")
    flex.generate(**inputs, escalate=found, **options(flex))
    flex.generate(**inputs, escalate=found, **options(flex))
    assert not reads


def test_what_was_calibrated_stays_with_the_parts(flex, tmp_path):
    inputs = batches(flex)[0]
    flex.escalate = found = calibrate(flex)
    try:
        expected = flex.generate(**inputs, escalate=True, **options(flex))
        flex.save_parts(tmp_path / "parts")
        flex.save_pretrained(tmp_path / "whole")
    finally:
        flex.escalate = None
    loaded = tokenflex.load_parts(tmp_path / "parts", host=flex.host).eval()
    assert loaded.escalate == found
    assert torch.equal(loaded.generate(**inputs, escalate=True, **options(flex)), expected)
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole").eval()
    assert whole.escalate == found
    assert torch.equal(whole.generate(**inputs, escalate=True, **options(flex)), expected)
    whole.save_pretrained(tmp_path / "again")
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "again").escalate == found
    whole.escalate = None
    whole.save_pretrained(tmp_path / "without")
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "without").escalate is None
    assert not torch.equal(loaded.generate(**inputs, **options(flex)), 0 * expected)


def test_files_without_it_load_as_before(flex, tmp_path):
    flex.save_parts(tmp_path)
    assert "escalate" not in json.loads((tmp_path / "tokenflex.json").read_text())
    assert tokenflex.load_parts(tmp_path, host=flex.host).escalate is None


def test_files_that_were_edited(flex, tmp_path):
    flex.escalate = Escalate(threshold=0.5)
    try:
        flex.save_parts(tmp_path)
    finally:
        flex.escalate = None
    path = tmp_path / "tokenflex.json"
    for change in ({"risk": 2}, {"more": 1}, {"measure": "first-margin"}, {"measure": {"name": "none"}}):
        data = json.loads(path.read_text())
        data["escalate"] |= change
        (tmp_path / "edited").mkdir(exist_ok=True)
        (tmp_path / "edited" / "tokenflex.json").write_text(json.dumps(data))
        (tmp_path / "edited" / "tokenflex.safetensors").write_bytes((tmp_path / "tokenflex.safetensors").read_bytes())
        with pytest.raises(tokenflex.errors.TokenFlexError):
            tokenflex.load_parts(tmp_path / "edited", host=flex.host)


def test_only_thresholds_are_kept(flex):
    for wrong in (Escalate(), 0.5, True):
        with pytest.raises(ConfigError, match="with a threshold"):
            flex.escalate = wrong
    assert flex.escalate is None
