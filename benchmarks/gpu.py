"""Everything that wants a GPU, most valuable first, in one command that can be cut off and taken up again.

    just gpu                                                 # the same as
    python -m benchmarks.gpu --minutes 8 --out runs/gpu      # --size 7b on CUDA, --size small elsewhere

Each job is a process of its own whose limit is the time that is left. Its result is written as soon as it is known,
and ``index.md`` says how every job went. Started again with the same ``--out``, what is done for this version, device
and size isn't done again; what failed, was cut off or found no time is. The exit status is 1 if a job failed.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tokenflex.files import locked, sweep, write_whole

ROOT = Path(__file__).parent.parent
STATE, INDEX = "state.json", "index.md"
SLACK = 2.0
"""Seconds kept back for stopping a job and writing what is known."""
LAST = 12
"""Lines of a job's output that are shown where it failed."""
Size = str


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        what: in words, for the index.
        command: arguments for Python; ``{size}`` stands for the size, ``{root}`` for the repository.
        seconds: how long it takes, by size; it isn't started where less is left.
        writes: ``page``: what ``--out`` names, and JSON beside it; ``both``: that page, and JSON on standard output;
            ``text``: standard output, which becomes the page.
        refusal: says why it can't be run, given the device; None where it can.
        more: further arguments, by size.
    """

    name: str
    what: str
    command: tuple[str, ...]
    seconds: Mapping[Size, float]
    writes: Literal["page", "both", "text"] = "page"
    refusal: Callable[[str], str | None] = lambda device: None
    more: Mapping[Size, tuple[str, ...]] = field(default_factory=dict)

    def arguments(self, size: Size, root: str) -> list[str]:
        """For Python, with ``--out`` for what takes it."""
        filled = [part.format(size=size, root=root) for part in (*self.command, *self.more.get(size, ()))]
        return filled if self.writes == "text" else [*filled, "--out", f"{self.name}.md"]


@dataclass(frozen=True)
class Outcome:
    """How a job went.

    Attributes:
        status: ``done``, ``failed``, ``cut off`` (its time ran out while it was running), ``no time left`` or
            ``skipped``.
        detail: the reason, or the last lines of what it wrote.
        key: what it is an outcome of: version, device and size.
        files: what it left in the folder.
        seconds: that it took.
    """

    status: str
    detail: str = ""
    key: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    seconds: float = 0.0
    date: str = ""


def gpu_tests() -> list[str]:
    """Files with tests that need a GPU, below the repository."""
    found = sorted((ROOT / "tests").rglob("test_*.py")) if (ROOT / "tests").is_dir() else []
    return [str(path.relative_to(ROOT)) for path in found if "mark.gpu" in path.read_text(encoding="utf-8")]


def _tests_refusal(device: str) -> str | None:
    if device != "cuda":
        return "torch sees no CUDA device"
    if find_spec("pytest") is None:
        return "pytest isn't installed"
    return None if gpu_tests() else "there are no tests beside benchmarks/"


def _module(name: str, *options: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.{name}", *options)


def _rglf(part: str, what: str, seconds: Mapping[Size, float]) -> Job:
    command = _module("rglf", "--size", "{size}", "--only", part, "--json")
    return Job(f"rglf_{part}", f"training against the published procedure: {what}", command, seconds, "both")


def jobs() -> tuple[Job, ...]:
    """All of them, most valuable first."""
    tests = ("-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider", "-o", "addopts=")
    where = ("--rootdir", "{root}", "-c", "{root}/pyproject.toml", *(f"{{root}}/{path}" for path in gpu_tests()))
    return (
        Job("cuda_tests", "tests that need a CUDA device",
            (*tests, *where), {"tiny": 20, "small": 20, "7b": 30}, "text", _tests_refusal),
        Job("checks", "ten hosts in bfloat16, by attention implementation",
            _module("gpu_checks"), {"tiny": 10, "small": 150, "7b": 90},
            more={"tiny": ("--hosts", "internvl", "qwen2_5_vl", "--attention", "sdpa", "flex_attention")}),
        Job("launches", "kernel launches, before and after flex.compile()",
            _module("gpu_launches", "--size", "{size}"), {"tiny": 10, "small": 150, "7b": 110},
            more={"tiny": ("--eager", "--warm", "1", "--runs", "1"), "small": ("--warm", "1", "--runs", "1")}),
        Job("paper_speed", "speed at the published shares of tokens",
            _module("paper_speed", "--size", "{size}", "--json"), {"tiny": 20, "small": 150, "7b": 120}, "both"),
        Job("before_tower", "levels before the vision tower beside levels after it",
            _module("paper_speed", "--size", "{size}", "--tables", "before-tower", "--json"),
            {"tiny": 20, "small": 150, "7b": 150}, "both"),
        Job("steps", "a step of stage 3 and of stage 4, and requests: time and peak memory",
            _module("gpu_steps", "--size", "{size}"), {"tiny": 15, "small": 60, "7b": 70},
            more={"tiny": ("--runs", "1", "--steps", "stage4/ours", "stage3/low", "--requests", "vanilla")}),
        Job("throughput", "images a second by batch, answer and mix of levels",
            _module("throughput", "--size", "{size}", "--json"), {"tiny": 40, "small": 200, "7b": 120}, "both",
            more={"small": ("--batches", "1", "8", "--answers", "1", "16")}),
        _rglf("router", "router alone", {"tiny": 30, "small": 60, "7b": 30}),
        _rglf("stage4", "stage 4", {"tiny": 90, "small": 90, "7b": 150}),
        _rglf("stage3", "stage 3", {"tiny": 180, "small": 240, "7b": 300}),
        _rglf("store", "stage 4 from a store", {"tiny": 30, "small": 90, "7b": 150}),
        _rglf("levels", "memory by number of levels", {"tiny": 180, "small": 120, "7b": 200}),
    )  # fmt: skip


class Day:
    """A folder of results, and what is known of every job.

    Args:
        out: the folder; made if it isn't there.
        jobs: all there are.
        key: what results are of: ``tokenflex``, ``device`` and ``size``.
        told: surroundings, for the index.
        ends: when the time is over, on the clock of ``time.monotonic``.
    """

    def __init__(
        self, out: Path, jobs: Sequence[Job], key: Mapping[str, str], told: Mapping[str, Any], ends: float
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.jobs, self.key, self.told, self.ends = out.resolve(), jobs, key, told, ends
        self.outcomes = _read(self.out / STATE)

    def run(self, chosen: Sequence[Job], device: str) -> bool:
        """Do what isn't done and fits.

        Args:
            device: ``cpu`` or ``cuda``.

        Returns:
            Whether none has failed.
        """
        for job in chosen:
            if not self._is("done", job):
                self.outcomes[job.name] = self._outcome(job, device)
                self._write()
            one = self.outcomes[job.name]
            _say(f"{job.name}: {one.status}" + (f" ({one.detail.splitlines()[-1]})" if one.detail else ""))
        self._write()
        return not any(self._is("failed", job) for job in chosen)

    def _is(self, status: str, job: Job) -> bool:
        known = self.outcomes.get(job.name)
        return known is not None and known.status == status and known.key == self.key

    def _outcome(self, job: Job, device: str) -> Outcome:
        given: dict[str, Any] = {"key": dict(self.key), "date": self.told["date"]}
        reason = job.refusal(device)
        if reason is None and self.key["size"] == "7b" and device != "cuda":
            reason = "--size 7b needs a CUDA device, and torch sees none"
        if reason is not None:
            return Outcome("skipped", reason, **given)
        needed, left = job.seconds[self.key["size"]], self.ends - time.monotonic() - SLACK
        if left >= needed:
            _say(f"{job.name}: {job.what}, about {needed:.0f} s of {left:.0f} s")
            return self._ran(job, left, given)
        if self._is("failed", job) or self._is("cut off", job):
            return self.outcomes[job.name]
        return Outcome("no time left", f"takes about {needed:.0f} s, {max(left, 0):.0f} s are left", **given)

    def _ran(self, job: Job, limit: float, given: Mapping[str, Any]) -> Outcome:
        page, data, log = (self.out / f"{job.name}.{ending}" for ending in ("md", "json", "log"))
        start = time.monotonic()
        code, said, complaints = _run([sys.executable, *job.arguments(self.key["size"], str(ROOT))], self.out, limit)
        seconds = time.monotonic() - start
        sweep(self.out, f"{job.name}.*")
        said, complaints = (_without_places(text, self.out) for text in (said, complaints))
        write_whole(log, f"{complaints}\n{said}" if job.writes == "page" else complaints)
        if job.writes == "both" and code == 0:
            write_whole(data, said)
        if job.writes == "text":
            write_whole(page, f"# {job.what.capitalize()}\n\n```\n{said.strip()}\n```\n")
        files = tuple(path.name for path in (page, data) if path.exists())
        given = {**given, "files": files, "seconds": round(seconds, 1)}
        if code == 0:
            return Outcome("done", **given)
        if code is None:
            return Outcome("cut off", f"after {seconds:.0f} s, all that was left; what it had written stays", **given)
        last = (said + complaints).strip().splitlines()[-LAST:] or [f"exit status {code}, without a word"]
        return Outcome("failed", "\n".join(last), **given)

    def _write(self) -> None:
        """What is known, for the next run and for people."""
        text = json.dumps({name: asdict(one) for name, one in self.outcomes.items()}, indent=1)
        write_whole(self.out / STATE, text + "\n")
        write_whole(self.out / INDEX, index(self.jobs, self.outcomes, self.key, self.told))


def _run(command: Sequence[str], folder: Path, limit: float) -> tuple[int | None, str, str]:
    """(Exit status, None if the time ran out; standard output; standard error)."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": errors}
        with _whole_group(
            subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **streams)
        ) as p:
            try:
                code = p.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                code = None
        texts: list[str] = []
        for stream in (output, errors):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    return code, texts[0], texts[1]


@contextmanager
def _whole_group(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """The process and its children, none of which outlives the block."""
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _without_places(text: str, out: Path) -> str:
    """The text without this machine's name, and where repository, results, Python and the user's files lie on it."""
    places = {str(out): ".", str(ROOT): ".", sys.prefix: "PYTHON", sys.base_prefix: "PYTHON", str(Path.home()): "~"}
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            text = text.replace(place, places[place])
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "HOST", text)


def _read(path: Path) -> dict[str, Outcome]:
    """What is known from before; nothing if the file can't be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: Outcome(**{**one, "files": tuple(one["files"])}) for name, one in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def index(jobs: Sequence[Job], outcomes: Mapping[str, Outcome], key: Mapping[str, str], told: Mapping[str, Any]) -> str:
    """How every job went."""
    lines = [
        f"# On {told['hardware']}",
        "",
        f"{told['date']}; torch {told['torch']}, transformers {told['transformers']}, Python {told['python']}, "
        f"tokenflex {key['tokenflex']}; size {key['size']}.",
        "",
        "| job | what | status | time | results |",
        "|---|---|---|---|---|",
    ]
    for job in jobs:
        one = outcomes.get(job.name) or Outcome("not run")
        files = ", ".join(f"[{name}]({name})" for name in one.files)
        detail = f": {one.detail}" if one.detail and one.status != "failed" else ""
        other = "" if not one.key or one.key == key else " (of another version, device or size)"
        shown = (detail + other).replace("\n", " ").replace("|", "/")
        took = f"{one.seconds:.0f} s" if one.seconds else ""
        lines.append(f"| {job.name} | {job.what} | {one.status}{shown} | {took} | {files} |")
    failed = [job for job in jobs if job.name in outcomes and outcomes[job.name].status == "failed"]
    for job in failed:
        lines += ["", f"## {job.name} failed", "", "```", outcomes[job.name].detail, "```"]
    lines += ["", "## Commands", "", "```"]
    for job in jobs:
        lines.append(" ".join(["python", *job.arguments(key["size"], ".")]).replace(" ./", " "))
    return "\n".join([*lines, "```"]) + "\n"


def _say(text: str) -> None:
    """Progress, on standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def _surroundings(device: str) -> tuple[dict[str, Any], str]:
    """(What results are worth nothing without, the package's version)."""
    import tokenflex
    from benchmarks import report

    date = time.strftime("%Y-%m-%d", time.gmtime())
    return {"date": date, **report.surroundings(device)}, tokenflex.__version__


def main(argv: list[str] | None = None) -> None:
    """Run what is asked for; exit with 1 if a job failed."""
    start = time.monotonic()
    every = jobs()
    options = _options(argv, [job.name for job in every])
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    told, version = _surroundings(device)
    size = options.size or ("7b" if device == "cuda" else "small")
    key = {"tokenflex": version, "device": told["hardware"], "size": size}
    chosen = [job for job in every if not options.only or job.name in options.only]
    with locked(options.out, "gpu", waiting=lambda: _say("another run writes to this folder; waiting for it")):
        day = Day(options.out, every, key, told, start + 60 * options.minutes)
        fine = day.run(chosen, device)
    _say(f"see {options.out / INDEX}")
    sys.exit(0 if fine else 1)


def _options(argv: list[str] | None, names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="never more than these (default 8)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for results (default runs/gpu)")
    parser.add_argument("--size", choices=("tiny", "small", "7b"), help="default: 7b on CUDA, small elsewhere")
    parser.add_argument("--only", nargs="+", choices=names, metavar="JOB", help=f"some of {', '.join(names)}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    # As on Ctrl-C: the job that is running ends with this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
