"""How ``tokenflex serve`` does under load: errors, waiting times and images a second, routed and at ``detail: high``.

    python -m benchmarks.serve_load quickstart/model
    python -m benchmarks.serve_load quickstart/model --out benchmarks/results/serve_load.md

The server is a process of its own; OpenAI's client asks it over the loopback device, from threads.
"""

import argparse
import base64
import contextlib
import datetime
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import torch
from PIL import Image

from benchmarks import report
from tokenflex.quickstart.images import exam

SIZES = ((128, 64), (64, 64), (96, 64), (256, 128), (64, 128), (200, 60), (128, 128), (40, 80))
"""Width and height in pixels; each request takes the next."""
DETAILS = ("auto", "high", "low")
START = 300
PROTOCOL = """\
{clients} clients ask {requests} questions each, one after another, about images of {sizes}
pixels in turn, each in a request of its own as a PNG in a data: URL; answers of at most {answer} tokens, greedy.
`auto` lets the router decide, `high` and `low` are the finest and the coarsest level: the same server, the same
requests. {rounds} rounds, in each of which the settings take turns; every round begins with another. Seconds are from a
client's call to its answer; images a second are all images by the time from the first call to the last answer, median
of the rounds, with their least and greatest. Before the first round every client asks one question that isn't counted.
The server's torch has one thread (OMP_NUM_THREADS); server and clients share the cores.
The quickstart's model is so small (0.5 M parameters, 4 x 4 patches a tile) that a request's time is mostly that of its
calls, and the router takes about what it saves: this page tells how the endpoint does, not what shorter prompts are
worth (throughput_small.md does)."""


@dataclass(frozen=True)
class Load:
    """One round of one setting.

    Attributes:
        seconds: of every request that was answered.
        wall: from the first call to the last answer.
        errors: their messages.
        tokens, full: visual tokens of all requests, and at the finest level.
    """

    detail: str
    seconds: list[float]
    wall: float
    errors: list[str]
    tokens: int
    full: int

    @property
    def rate(self) -> float:
        """Images a second."""
        return len(self.seconds) / self.wall


@contextlib.contextmanager
def serving(model: str, name: str) -> Iterator[str]:
    """The address of a server for a model; ends with it.

    Raises:
        RuntimeError: it doesn't come up.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tokenflex.cli.main", "serve", model, "--port", str(port), "--served-name", name]
    settings = {"OMP_NUM_THREADS": "1", **os.environ}  # the clients have work to do as well
    with subprocess.Popen([*command, "--device", "cpu"], env=settings) as process:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + START
        try:
            while not _is_up(address):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the server didn't come up: {' '.join(command)}")
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def _is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.TransportError:
        return False


def questions(seed: int, count: int) -> list[tuple[str, str]]:
    """(image as a data: URL, question) of mixed sizes."""
    found: list[tuple[str, str]] = []
    for i, (image, asked) in enumerate(exam(seed, "test", count)):
        written = io.BytesIO()
        image.image.resize(SIZES[i % len(SIZES)], Image.Resampling.BICUBIC).save(written, format="PNG")
        url = f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"
        found.append((url, asked.question))
    return found


def load(
    client: openai.OpenAI, name: str, asked: Sequence[Sequence[tuple[str, str]]], detail: str, answer: int
) -> Load:
    """All questions, those of every client one after another."""
    seconds, errors, tokens, full = list[float](), list[str](), list[int](), list[int]()

    def of_one(mine: Sequence[tuple[str, str]]) -> None:
        for url, question in mine:
            image: Any = {"type": "image_url", "image_url": {"url": url, "detail": detail}}
            content: Any = [image, {"type": "text", "text": question}]
            begun = time.perf_counter()
            try:
                given: Any = client.chat.completions.create(
                    model=name, messages=[{"role": "user", "content": content}], max_tokens=answer, temperature=0
                )
            except openai.OpenAIError as error:
                errors.append(str(error))
                continue
            seconds.append(time.perf_counter() - begun)
            tokens.append(given.usage.visual_tokens)
            full.append(given.usage.visual_tokens_full)

    begun = time.perf_counter()
    with ThreadPoolExecutor(len(asked)) as pool:
        list(pool.map(of_one, asked))
    return Load(detail, seconds, time.perf_counter() - begun, errors, sum(tokens), sum(full))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Everything: loads, what the server counted, surroundings."""
    every = questions(options.seed, options.clients * options.requests)
    asked = [every[i :: options.clients] for i in range(options.clients)]
    loads, begun = list[Load](), time.perf_counter()
    with serving(options.model, "model") as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)
        for detail in DETAILS:
            load(client, "model", [mine[:1] for mine in asked], detail, options.answer)
        for i in range(options.rounds):
            turn = i % len(DETAILS)
            for detail in (*DETAILS[turn:], *DETAILS[:turn]):
                loads.append(load(client, "model", asked, detail, options.answer))
                sys.stderr.write(f"round {i + 1}: {_line(detail, [loads[-1]])}\n")
        counted = httpx.get(f"{address}/metrics").text
    counts = dict(line.rsplit(" ", 1) for line in counted.splitlines() if line and not line.startswith("#"))
    rows = float(counts["tokenflex_batch_requests_sum"]) / float(counts["tokenflex_batch_requests_count"])
    told = {name: getattr(options, name) for name in ("clients", "requests", "rounds", "answer")}
    return {
        "loads": [asdict(one) for one in loads],
        "errors": sum(len(one.errors) for one in loads),
        "rows_per_batch": rows,
        "protocol": PROTOCOL.format(sizes=", ".join(f"{w} x {h}" for w, h in SIZES), **told),
        "seconds": time.perf_counter() - begun,
        **report.surroundings("cpu"),
    }


def page(told: dict[str, Any], command: str) -> str:
    """The table with what is needed to judge it."""
    loads = [Load(**one) for one in told["loads"]]
    lines = [_line(detail, [one for one in loads if one.detail == detail]) for detail in DETAILS]
    return "\n".join(
        [
            "# The endpoint under load",
            "",
            f"{datetime.date.today()}; {told['hardware']}; {report.versions(told)}; `{command}`; "
            f"{told['seconds'] / 60:.1f} minutes.",
            "",
            told["protocol"],
            "",
            "| detail | requests | errors | visual tokens kept | p50 | p95 | images/s |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
            f"Requests per batch: {told['rows_per_batch']:.1f} on average.",
            "",
        ]
    )


def _line(detail: str, loads: Sequence[Load]) -> str:
    seconds = [one for each in loads for one in each.seconds]
    if len(seconds) < 2:
        return f"| {detail} | 0 | {sum(len(each.errors) for each in loads)} | - | - | - | - |"
    cuts, rates = statistics.quantiles(seconds, n=100, method="inclusive"), sorted(each.rate for each in loads)
    errors, total = sum(len(each.errors) for each in loads), sum(each.full for each in loads)
    kept = sum(each.tokens for each in loads) / total
    return (
        f"| {detail} | {len(seconds) + errors} | {errors} | {kept:.1%} | {cuts[49] * 1000:.0f} ms | "
        f"{cuts[94] * 1000:.0f} ms | {statistics.median(rates):.1f} ({rates[0]:.1f}-{rates[-1]:.1f}) |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 1 if a request wasn't answered."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_load", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", help="folder of the quickstart's model")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=50, help="of every client, in every round and setting")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answer", type=int, default=4, help="tokens at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--out", type=Path, help="write the page here, and its figures beside it")
    options = parser.parse_args(argv)
    report.quiet()
    torch.set_num_threads(1)
    told = measured(options)
    given = sys.argv[1:] if argv is None else argv
    written = page(told, f"python -m benchmarks.serve_load {' '.join(given)}")
    report.keep(options.out, written, told)
    sys.stdout.write((json.dumps(told) if options.json else written) + "\n")
    return 1 if told["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
