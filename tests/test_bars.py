"""Progress is a bar on a terminal and whole lines in a pipe."""

import io
import sys

import pytest
from tqdm.std import tqdm

from tokenflex import bars


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Screen())
    with bars.bar(3, what="feedback", unit="sample") as bar:
        assert type(bar) is tqdm
        bar.update(3)
    assert "100%" in sys.stderr.getvalue()


def test_a_pipe_gets_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(bars, "APART", 0.0)
    with bars.bar(4, what="feedback", unit="sample", initial=1) as bar:
        bar.miniters = 0
        for _ in range(3):
            bar.update()
    text = sys.stderr.getvalue()
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0] == "feedback: 1 of 4 samples"
    assert lines[-1] == "feedback: 4 of 4 samples"
    assert lines[1].startswith("feedback: 2 of 4 samples, about ")
    assert len(lines) == len(set(lines))


def test_a_long_time_apart_only_the_ends_are_told(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(bars, "APART", 1e9)
    with bars.bar(what="answers", unit="answer") as bar:
        bar.reset(100)
        bar.n = bar.initial = 10
        bar.refresh()
        for _ in range(90):
            bar.update()
    told = [line.split(",")[0] for line in sys.stderr.getvalue().splitlines()]
    assert told[-2:] == ["answers: 10 of 100 answers", "answers: 100 of 100 answers"]
    assert len(told) <= 3


@pytest.mark.parametrize("stream", [io.StringIO, Screen])
def test_hidden(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    with bars.bar(3, what="feedback", hidden=True) as bar:
        bar.update(3)
    assert sys.stderr.getvalue() == ""
