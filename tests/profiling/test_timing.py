"""The clock's arithmetic: quantiles, turns, and who is timed when."""

import gc
from collections import Counter
from statistics import median

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.errors import ConfigError
from tokenflex.profiling.timing import Times, clock_for, interleaved, quantile, turns

SECONDS = st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=1, max_size=30)


def test_quantiles_by_hand():
    assert quantile([5.0], 0.95) == 5.0
    assert quantile([2.0, 1.0], 0.5) == 1.5
    assert quantile(list(range(21)), 0.95) == 19.0
    assert quantile(list(range(20)), 0.95) == pytest.approx(18.05), "between the 19th and the last"
    assert Times((3.0, 1.0, 2.0)).to_dict() == {"median": 2.0, "p95": 2.9, "n": 3, "seconds": [3.0, 1.0, 2.0]}


@given(SECONDS, st.floats(0, 1), st.floats(0, 1))
def test_quantiles_lie_between_the_ends_and_never_fall(values, one, other):
    low, high = sorted((one, other))
    assert min(values) <= quantile(values, low) <= quantile(values, high) + 1e-9 <= max(values) + 2e-9


@given(SECONDS)
def test_half_is_the_median(values):
    assert quantile(values, 0.5) == pytest.approx(median(values))


@given(SECONDS, st.randoms(use_true_random=False))
def test_the_order_of_runs_is_no_matter(values, random):
    shuffled = random.sample(values, len(values))
    assert quantile(values, 0.95) == quantile(shuffled, 0.95)


def test_turns_by_hand():
    assert list(turns("abc", 6)) == [
        ("a", "b", "c"), ("c", "b", "a"),
        ("b", "c", "a"), ("a", "c", "b"),
        ("c", "a", "b"), ("b", "a", "c"),
    ]  # fmt: skip
    assert list(turns([], 2)) == [(), ()]


@given(st.integers(1, 8), st.integers(0, 30))
def test_everyone_has_a_turn_in_every_round(count, rounds):
    names = [f"s{i}" for i in range(count)]
    assert all(sorted(order) == sorted(names) for order in turns(names, rounds))
    assert len(list(turns(names, rounds))) == rounds


@given(st.integers(1, 8))
def test_everyone_stands_everywhere_equally_often(count):
    names = [f"s{i}" for i in range(count)]
    seen = Counter((name, place) for order in turns(names, 2 * count) for place, name in enumerate(order))
    assert set(seen.values()) == {2}
    assert len(seen) == count**2


class Watch:
    """A clock that says how many calls it has timed."""

    def __init__(self):
        self.called = []
        self.collecting = False

    def call(self, name):
        return lambda: self.called.append(name)

    def __call__(self, run):
        run()
        self.collecting |= gc.isenabled()
        return float(len(self.called))


def test_settings_take_turns_and_warm_up_does_not_count():
    watch, ticks = Watch(), []
    settings = {
        "a": {"prefill": watch.call("a1"), "whole": watch.call("a2")},
        "b": {"whole": watch.call("b")},
    }
    times = interleaved(settings, 2, 1, watch, lambda: ticks.append(1))
    assert watch.called == ["a1", "a2", "b", "b", "a1", "a2", "b", "a1", "a2"]
    assert times["a"]["prefill"].seconds == (5.0, 8.0)
    assert times["a"]["whole"].seconds == (6.0, 9.0)
    assert times["b"]["whole"].seconds == (4.0, 7.0)
    assert len(ticks) == 6
    assert not watch.collecting, "garbage is collected between rounds only"
    assert gc.isenabled()


def test_collection_is_on_again_after_a_failure():
    def fails():
        raise KeyError("x")

    with pytest.raises(KeyError):
        interleaved({"a": {"whole": fails}}, 1, 0, lambda run: run())
    assert gc.isenabled()


def test_clocks_of_devices():
    called = []
    seconds = clock_for(torch.device("cpu"))(lambda: called.append(1))
    assert called == [1]
    assert seconds >= 0
    with pytest.raises(ConfigError, match="device 'meta' has no clock here; profile on cpu or cuda"):
        clock_for(torch.device("meta"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_clock_of_cuda_waits_for_the_device():
    one = torch.ones(8, device="cuda")
    assert clock_for(one.device)(lambda: one + one) > 0
