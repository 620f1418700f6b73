"""Servers that are killed while they answer: clients get an error, never half an answer, and the next one starts."""

import json
import os
import signal
import socket
import threading
import time
from typing import Any

import httpx
import uvicorn

from tests.torture.kills import Process
from tokenflex.cli.main import main

CLIENTS, START = 3, 60.0
QUESTION = {"max_tokens": 6, "temperature": 0, "messages": [{"role": "user", "content": "w1 w2 w3"}]}


def killed(ground: Any, tally: Any, times: int) -> Any:
    """Start a server, ask it from several threads, kill it, and start the next one on the same port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shop, answers, halves = ground.shop, set[str](), 0
    words = ["serve", str(shop.folder / "model"), "--port", str(port), "--served-name", "m", "--device", "cpu"]
    assert uvicorn
    for number in range(times + 1):
        server = Process(lambda: main(words), ground.log())
        address = f"http://127.0.0.1:{port}/v1/chat/completions"
        if not _listens(port, server):
            tally.trouble("crashed", f"it doesn't start: {server.end(0.0).said}")
            return tally
        if number == times:  # the last one ends as a user ends it
            _ask(address, stream=False, answers=answers)
            server.send(signal.SIGINT)
            ended = server.end()
            if ended.code not in (0, 130) or not ended.plain:
                tally.trouble("crashed", f"after Ctrl-C: {ended.code} {ended.said}")
            break
        halves += _asked_and_killed(server, address, ground.chance.uniform(0.0, 0.4), answers)
        tally.times += 1
    tally.wrong += max(len(answers) - 1, 0)
    tally.note = f"{CLIENTS} clients at once, streams among them; {halves} requests were cut off and ended in an error"
    return tally


def _asked_and_killed(server: Process, address: str, delay: float, answers: set[str]) -> int:
    """How many requests ended in an error; whole answers are added."""
    errors, begun = [], threading.Event()

    def client(stream: bool) -> None:
        while True:
            begun.set()
            try:
                _ask(address, stream, answers)
            except (httpx.HTTPError, ValueError) as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=client, args=(number % 2 == 1,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    begun.wait()
    server.wait(delay)
    server.send(signal.SIGKILL)
    server.end()
    for thread in threads:
        thread.join()
    return len(errors)


def _ask(address: str, stream: bool, answers: set[str]) -> None:
    """Add a whole answer.

    Raises:
        ValueError, httpx.HTTPError: it isn't whole.
    """
    body = {"model": "m", "stream": stream, **QUESTION}
    if not stream:
        found = httpx.post(address, json=body, timeout=START)
        found.raise_for_status()
        answers.add(found.json()["choices"][0]["message"]["content"])
        return
    text = ""
    with httpx.stream("POST", address, json=body, timeout=START) as lines:
        lines.raise_for_status()
        for line in lines.iter_lines():
            if line == "data: [DONE]":
                answers.add(text)
                return
            if line.startswith("data: "):
                told = json.loads(line.removeprefix("data: "))
                text += "".join(one["delta"].get("content") or "" for one in told.get("choices", ()))
    raise ValueError(f"the stream ended early, after {text!r}")


def _listens(port: int, server: Process) -> bool:
    """Whether it takes requests, before it has ended."""
    end = time.monotonic() + START
    while server.wait(0.0) is None and time.monotonic() < end:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", timeout=START).status_code == 200
        except httpx.HTTPError:
            os.sched_yield()
    return False
