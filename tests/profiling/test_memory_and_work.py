"""Live bytes and floating-point operations, against counts by hand."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tokenflex.profiling.flops import counted
from tokenflex.profiling.memory import LiveBytes, cache_bytes, measured

CPU = torch.device("cpu")


def test_live_bytes_by_hand():
    held = torch.ones(1000)
    with LiveBytes([held]) as live:
        double = held * 2
        assert live.live == 4000
        view = double[:10]
        assert live.live == 4000, "a view holds nothing of its own"
        del double
        assert live.live == 4000, "but it keeps what it shows"
        more = view + 1
        assert live.live == 4040
        del view
        assert live.live == 40
        held.mul_(2)
        held.view(10, 100).t()
        assert live.live == 40, "what was there before isn't counted"
        wide = more.double()
        assert live.live == 120
    assert live.peak == 4040
    del more, wide


def test_the_peak_is_inside_the_run_and_comes_on_top_of_what_is_held():
    held = torch.ones(1000)

    def run():
        large = held.repeat(5)
        return {"sequences": large[:1] + 1}

    used, output = measured(run, [held, held[:5]], CPU)
    assert used.held == 4000, "shared storage counts once"
    assert used.peak == 4000 + 20000 + 4
    assert used.working == 20004
    assert used.cache == 0
    assert output["sequences"].tolist() == [2.0]
    assert used.to_dict() == {"peak": 24004, "held": 4000, "cache": 0, "working": 20004}


def test_running_twice_gives_the_same():
    held = torch.randn(64, 64)

    def run():
        return {"sequences": torch.softmax(held @ held, -1) @ held}

    assert measured(run, [held], CPU)[0] == measured(run, [held], CPU)[0]


@pytest.mark.parametrize("key", ["cache", "past_key_values"])
def test_caches_under_both_their_names(key):
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in range(3):
        cache.update(torch.zeros(2, 4, 7, 8), torch.zeros(2, 4, 7, 8), layer)
    assert cache_bytes({key: cache}) == 3 * 2 * (2 * 4 * 7 * 8) * 4
    assert cache_bytes({key: None}) == 0


def test_work_by_hand():
    one, other = torch.ones(3, 5), torch.ones(5, 7)
    assert counted(lambda: one @ other).flops == 2 * 3 * 5 * 7
    assert counted(lambda: one + 1).flops == 0
    assert counted(lambda: one @ other).attention == ()


def test_attention_counts_its_two_products_and_is_named():
    query, key = torch.ones(1, 2, 3, 8), torch.ones(1, 2, 11, 8)
    work = counted(lambda: scaled_dot_product_attention(query, key, key))
    assert work.flops == 2 * (2 * 3 * 11 * 8) * 2
    assert len(work.attention) <= 1
    assert work.to_dict()["attention"] == list(work.attention)
