from pathlib import Path

import pytest

from tokenflex import Budget
from tokenflex.errors import ConfigError
from tokenflex_lmms_eval.settings import Settings, joined, parse_budget


def test_as_lmms_eval_reads_arguments():
    """It makes numbers of what looks like one, floats of negative ones, and gives its batch size as text."""
    settings = Settings.parse({"host": "h", "level": -1.0, "batch_size": "4", "device": None, "log": "runs/a.jsonl"})
    assert (settings.host, settings.level, settings.batch_size, settings.device) == ("h", -1, 4, None)
    assert settings.log == Path("runs/a.jsonl")
    assert settings.source == "h"
    assert settings.dtype == "auto"


def test_untrained_parts_are_passed_on_as_given():
    settings = Settings.parse({"host": "h", "router": "reconstruction", "voter": "mean"})
    assert settings.untrained == {"router": "reconstruction", "voter": "mean"}


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("ratio:0.3", Budget(ratio=0.3)),
        ("tokens:144", Budget(tokens=144)),
        ("weight:0.2", Budget(weight=0.2)),
        ("weight:1e-3", Budget(weight=1e-3)),
        ("tokens:144+per:request+floor:1+ceiling:-2", Budget(tokens=144, per="request", floor=1, ceiling=-2)),
    ],
)
def test_budgets(text, budget):
    assert parse_budget(text) == budget
    assert Settings.parse({"model": "m", "budget": text}).budget == budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.3", "write ratio:0.3"),
        ("ratio", "write ratio:0.3"),
        ("ratio:", "write ratio:0.3"),
        ("ratio:0.3+ratio:0.4", "write ratio:0.3"),
        ("ratio:much", "ratio must be a number, not 'much'"),
        ("tokens:1.5", "tokens must be a number, not '1.5'"),
        ("ratio:0", "ratio=0.0 must be above 0"),
        ("ratio:30", "ratio=30.0 is more than all tokens"),
        ("ratio:0.3+tokens:5", "two limits on the same tokens"),
        ("weight:0", "limits nothing"),
        ("per:planet", "per='planet'; use one of"),
        ("rate:0.3", "rate must be a number|unknown setting"),
    ],
)
def test_budgets_that_cannot_be_read(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_budget(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either model="),
        ({"model": "m", "host": "h"}, "give either model="),
        ({"model": "m", "router": "avg"}, "model= brings its own parts"),
        ({"model": "m", "parts": "p"}, "model= brings its own parts"),
        ({"host": "h", "parts": "p", "voter": "mean"}, "parts=p names all parts, so voter= has no place"),
        ({"host": "h"}, "has no parts that decide"),
        ({"host": "h", "scaler": "stride"}, "has no parts that decide"),
        ({"model": "m", "level": 1, "budget": "ratio:0.3"}, "level=1 forces the level"),
        ({"model": "m", "batch_size": "auto"}, "batch_size='auto' must be a whole number"),
        ({"model": "m", "batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"model": "m", "level": 0.5}, "level=0.5 must be a whole number"),
        ({"model": "m", "dtype": "int8"}, "dtype='int8' isn't known"),
        ({"model": "m", "batchsize": 2}, "'batchsize' isn't known. Did you mean 'batch_size'"),
        ({"model": "m", "max_batch_size": 2}, "'max_batch_size' isn't known"),
    ],
)
def test_contradictions(given, message):
    with pytest.raises(ConfigError, match=message):
        Settings.parse(given)


def test_batch_size_may_stand_in_either_place():
    assert joined({"model": "m", "batch_size": 8}, {"batch_size": 1, "device": None}) == {"model": "m", "batch_size": 8}
    assert joined({"model": "m"}, {"batch_size": "4", "device": "cpu"})["batch_size"] == "4"
    assert joined({"batch_size": 4}, {"batch_size": "4"})["batch_size"] == "4"
    with pytest.raises(ConfigError, match="batch_size is 8 in --model_args and 4 in --batch_size"):
        joined({"batch_size": 8}, {"batch_size": "4"})
    with pytest.raises(ConfigError, match="device is cpu"):
        joined({"device": "cpu"}, {"device": "cuda"})
