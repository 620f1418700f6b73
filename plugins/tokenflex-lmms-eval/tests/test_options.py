import pytest

from tokenflex.errors import ConfigError
from tokenflex_lmms_eval.options import parse

GREEDY = {"max_new_tokens": 9, "do_sample": False, "num_beams": 1}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"do_sample": False, "temperature": 0, "top_p": 1.0, "num_beams": 1},
        {"do_sample": False, "temperature": 0.7, "top_p": None},
        {"temperature": 0.0, "until": None},
        {"do_sample": True, "temperature": 0},
        {"image_aspect_ratio": "pad", "until": []},
    ],
)
def test_greedy(given):
    """Nothing that only concerns sampling is left, so that ``generate`` has nothing to warn of."""
    options = parse(given, 9)
    assert dict(options.arguments) == GREEDY
    assert options.until == ()


@pytest.mark.parametrize("given", [{"do_sample": True, "top_p": 0.9}, {"temperature": 0.7}])
def test_sampling_is_honoured(given):
    options = parse(given, 9)
    rest = {name: value for name, value in given.items() if name != "do_sample"}
    assert dict(options.arguments) == {**GREEDY, "do_sample": True, **rest}


def test_lengths_and_search():
    assert parse({"max_new_tokens": 16}, 9).arguments["max_new_tokens"] == 16
    assert parse({"max_gen_toks": 16}, 9).arguments["max_new_tokens"] == 16
    found = parse({"num_beams": 3, "repetition_penalty": 1.2}, 9).arguments
    assert (found["num_beams"], found["repetition_penalty"], found["do_sample"]) == (3, 1.2, False)
    with pytest.raises(ConfigError, match="max_new_tokens=0 must be 1 or more"):
        parse({"max_new_tokens": 0}, 9)


def test_until():
    assert parse({"until": "Q:"}, 9).until == ("Q:",)
    assert parse({"until": ["\n\n", "Q:"], "stop_sequences": ["Q:", "A:"]}, 9).until == ("\n\n", "Q:", "A:")
    with pytest.raises(ConfigError, match="none of them empty"):
        parse({"until": [""]}, 9)


def test_what_cannot_be_honoured_is_refused():
    with pytest.raises(ConfigError, match="max_new_token, seed can't be honoured"):
        parse({"max_new_token": 3, "seed": 1}, 9)


def test_keys_tell_options_apart():
    same = parse({"temperature": 0, "max_new_tokens": 4}, 9), parse({"max_new_tokens": 4, "do_sample": False}, 9)
    assert same[0].key == same[1].key
    assert len({parse({"until": until}, 9).key for until in ("a", ["a"], "b", None)}) == 3
