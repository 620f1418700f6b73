"""Calls at the same time, of threads and processes, give what they give one after the other, bit for bit."""

import copy
import hashlib
import json
import multiprocessing
import os
import random
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import tokenflex
from tests.conftest import image
from tests.torture.outcome import Outcome
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor

AREA = "At the same time"
THREADS, SWITCH = 6, 1e-6
"""Threads at once; seconds after which Python lets another one run, where 0.005 is usual."""
CALLS = {"one": 700, "two": 600, "settings": 200, "fork": 240, "spawn": 120}
SMALL = 0.1
"""Scale below which no processes are spawned: each imports everything anew."""
TEXTS = ("user : <image> w1 w2 :", "<image> w4 w5 w6 w7 :", "w9 <image> w3 w9 :", "w1 w2 w3 :")
NEW = 3


@dataclass(frozen=True)
class Call:
    """One call of a model: which model and method, which rows, and options."""

    model: int
    method: str
    rows: tuple[int, ...]
    options: str

    @property
    def given(self) -> dict[str, Any]:
        """The options as keyword arguments."""
        found = json.loads(self.options)
        if "budget" in found:
            found["budget"] = tokenflex.Budget(**found["budget"])
        if "escalate" in found:
            found["escalate"] = tokenflex.Escalate(**found["escalate"])
        return found


OPTIONS: Sequence[Mapping[str, Any]] = (
    {}, {"level": 0}, {"level": 2}, {"level": "finest"}, {"budget": {"ratio": 0.3}}, {"budget": {"tokens": 20}},
)  # fmt: skip
ESCALATE: Mapping[str, Any] = {"escalate": {"threshold": 0.9, "levels": [0, 4]}}


class Bench:
    """Two models over one host, and batches for them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.host = tiny_llava_next().eval()
        self.processor: Any = tiny_llava_next_processor()
        self.models = [tokenflex.wrap(self.host).eval(), tokenflex.wrap(self.host, scaler="stride").eval()]
        self._batches: dict[tuple[int, ...], dict[str, Any]] = {}

    def batch(self, rows: tuple[int, ...]) -> dict[str, Any]:
        """Of rows of `TEXTS`, each with its own image."""
        if rows not in self._batches:
            images = [image(row) for row in rows if "<image>" in TEXTS[row]]
            texts = [TEXTS[row] for row in rows]
            made = self.processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")
            self._batches[rows] = dict(made)
        return self._batches[rows]

    def answer(self, call: Call) -> str:
        """What a call gives, as a digest."""
        flex, batch, given = self.models[call.model], self.batch(call.rows), call.given
        with torch.no_grad():
            if call.method == "generate":
                return digest(flex.generate(**batch, **given, max_new_tokens=NEW, do_sample=False))
            if call.method == "decide":
                told = flex.decide(**batch, **given)
                return digest([[one.level, one.tokens, one.of, one.scores] for one in told])
            return digest(flex(**batch, **given).logits)


def digest(found: Any) -> str:
    """Of tensors, bit for bit, and plain data."""
    if isinstance(found, Tensor):
        found = found.detach().cpu().contiguous()
        return hashlib.sha256(f"{found.dtype}{tuple(found.shape)}".encode() + found.numpy().tobytes()).hexdigest()
    if isinstance(found, list | tuple):
        return digest_text("".join(map(digest, found)))
    return digest_text(repr(found))


def digest_text(text: str) -> str:
    """Of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def calls(chance: random.Random, count: int, models: int) -> list[Call]:
    """Random calls; decisions and forward passes don't escalate."""
    found = []
    for _ in range(count):
        method = chance.choice(("generate", "generate", "decide", "forward"))
        options = chance.choice([*OPTIONS, ESCALATE] if method == "generate" else OPTIONS)
        rows = tuple(sorted(chance.sample(range(len(TEXTS)), chance.randint(1, 2))))
        if rows == (3,):
            rows = (0, 3)  # decisions need an image
        found.append(Call(chance.randrange(models), method, rows, json.dumps(options)))
    return found


def run(scale: float, seed: int) -> list[Outcome]:
    """All ways of calling at the same time; see `tests.torture.outcome`."""
    bench, chance = Bench(), random.Random(seed)
    many = {name: max(round(count * scale), 2 * THREADS) for name, count in CALLS.items()}
    asked = {name: calls(chance, count, 1 if name == "one" else 2) for name, count in many.items()}
    expected = {call: bench.answer(call) for some in asked.values() for call in dict.fromkeys(some)}
    rows = [
        threaded("threads on one FlexModel", bench, asked["one"], expected),
        threaded("threads on two FlexModels over one host", bench, asked["two"], expected),
        settings(bench, asked["settings"], expected),
        forked(bench, asked["fork"], expected),
    ]
    return [*rows, spawned(asked["spawn"], expected)] if scale >= SMALL else rows


def threaded(
    fault: str,
    bench: Bench,
    asked: Sequence[Call],
    expected: Mapping[Call, str],
    among: Callable[[], None] = lambda: None,
) -> Outcome:
    """Calls of several threads.

    Args:
        among: called by every thread before each of its calls.
    """
    before, start = sys.getswitchinterval(), threading.Barrier(THREADS)
    wrong, crashed = [], list[BaseException]()

    def work(number: int) -> None:
        start.wait()
        for call in asked[number::THREADS]:
            try:
                among()
                if bench.answer(call) != expected[call]:
                    wrong.append(call)
            except Exception as error:  # counted, and the next call is made
                crashed.append(error)

    sys.setswitchinterval(SWITCH)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, range(THREADS)))
    finally:
        sys.setswitchinterval(before)
    tell(fault, [*map(repr, wrong), *map(repr, crashed)])
    note = f"{THREADS} threads, each giving way after {SWITCH:g} s"
    return Outcome(AREA, fault, len(asked), wrong=len(wrong), crashed=len(crashed), note=note)


def settings(bench: Bench, asked: Sequence[Call], expected: Mapping[Call, str]) -> Outcome:
    """Calls of one model while settings of generation of another one over the same host are changed."""
    third = tokenflex.wrap(bench.host)
    kept = copy.deepcopy(bench.host.generation_config)
    turn = iter(range(len(asked) + THREADS))

    def change() -> None:
        third.generation_config.update(max_new_tokens=1 + next(turn, 0) % 5, suppress_tokens=[5, 6, 7])

    fault = "another FlexModel's generation_config is changed meanwhile"
    found = threaded(fault, bench, asked, expected, change)
    same = kept == bench.host.generation_config
    return found if same else Outcome(AREA, fault, found.times, wrong=found.wrong + 1, note="the host's was changed")


def forked(bench: Bench, asked: Sequence[Call], expected: Mapping[Call, str]) -> Outcome:
    """Calls of processes made by fork, while this one goes on calling."""
    workers = 4
    edges = [round(len(asked) * i / workers) for i in range(workers + 1)]
    pids = []
    for first, last in pairwise(edges):
        pid = os.fork()
        if pid == 0:
            os._exit(_wrong_in_child(bench, asked[first:last], expected))
        pids.append(pid)
    own = sum(bench.answer(call) != expected[call] for call in asked[:workers])
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    wrong, crashed = own + sum(code for code in ends if 0 < code < 100), sum(code < 0 or code >= 100 for code in ends)
    return Outcome(AREA, f"{workers} processes by fork", len(asked) + workers, wrong=wrong, crashed=crashed)


def _wrong_in_child(bench: Bench, asked: Sequence[Call], expected: Mapping[Call, str]) -> int:
    """How many answers are wrong, 99 at most; 100 for an error."""
    try:
        return min(sum(bench.answer(call) != expected[call] for call in asked), 99)
    except BaseException as error:  # a child must never come back into the parent's code
        tell("fork", [repr(error)])
        return 100


def _answers(asked: Sequence[Call]) -> list[str]:
    """Of a process that starts from nothing."""
    torch.set_num_threads(1)
    bench = Bench()
    return [bench.answer(call) for call in asked]


def spawned(asked: Sequence[Call], expected: Mapping[Call, str]) -> Outcome:
    """Calls of processes that start from nothing."""
    fault, workers = "2 processes by spawn", 2
    try:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            found = pool.map(_answers, [asked[i::workers] for i in range(workers)])
    except Exception as error:
        tell(fault, [repr(error)])
        return Outcome(AREA, fault, len(asked), crashed=1)
    wrong = sum(
        answer != expected[call]
        for i, answers in enumerate(found)
        for call, answer in zip(asked[i::workers], answers, strict=True)
    )
    return Outcome(AREA, fault, len(asked), wrong=wrong)


def tell(fault: str, troubles: Sequence[str]) -> None:
    """For whoever mends it."""
    for trouble in troubles[:5]:
        sys.stderr.write(f"{fault}: {trouble[:1000]}\n")
