"""The load test's figures are those of requests that were answered; errors are counted, not lost."""

import pytest

from benchmarks import report, serve_load
from tests.serving.server.conftest import NAME, drawn, small, start  # noqa: F401 (fixtures)


@pytest.fixture
def asked():
    every = serve_load.questions(0, 6)
    return [every[0::2], every[1::2]]


def test_loads(start, small, asked):  # noqa: F811
    client = start()
    finest = serve_load.load(client, NAME, asked, "high", 2)
    assert (len(finest.seconds), finest.errors, finest.tokens) == (6, [], finest.full)
    coarsest = serve_load.load(client, NAME, asked, "low", 2)
    assert coarsest.full == finest.full
    assert coarsest.tokens < finest.tokens
    failed = serve_load.load(client, "other", asked, "low", 2)
    assert (failed.seconds, len(failed.errors)) == ([], 6)
    assert "There is no model" in failed.errors[0]


def test_the_page():
    loads = [serve_load.Load(detail, [0.1] * 19 + [0.5], 2.0, [], 20, 40) for detail in serve_load.DETAILS]
    loads.append(serve_load.Load("low", [0.1] * 20, 1.0, ["full"], 20, 40))
    told = {"loads": [vars(one) for one in loads], "protocol": "P", "seconds": 60, "rows_per_batch": 4.25}
    page = serve_load.page(told | report.surroundings("cpu"), "the command")
    assert "| high | 20 | 0 | 50.0% | 100 ms | 120 ms | 10.0 (10.0-10.0) |" in page
    assert "| low | 41 | 1 | 50.0% | 100 ms | 100 ms | 15.0 (10.0-20.0) |" in page
    assert "4.2 on average" in page
    assert "`the command`" in page
