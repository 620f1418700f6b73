"""Processes killed, disks that are full or read-only, data and workers that vanish, two writers of one folder."""

import contextlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.torture import hardship, servers
from tests.torture.commands import Command, Results, Workshop, left
from tests.torture.kills import Course, Ended, Process, course
from tests.torture.outcome import Outcome

KILLS, DISKS, STOPS, PAIRS, OTHERS = 50, 12, 12, 4, 4
"""How often at scale 1, per command: kills; full or read-only disks; Ctrl-C; two at once; what readers and ranks do."""
SLOW = 0.1
"""Share of that for commands that take long, and scale below which `few` of all are tried."""


class Ground:
    """A folder to try commands in, and what undisturbed runs of them gave."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.chance, self._tries = folder, random.Random(seed), 0
        (folder / "shop").mkdir()
        self.shop = Workshop(folder / "shop")
        self.expected: dict[str, tuple[Course, Results]] = {}

    def fresh(self, command: Command, where: Path | None = None) -> Path:
        """A new place for a command's output, with what is there before."""
        self._tries += 1
        out = (where or self.folder) / f"try{self._tries}" / "out"
        out.parent.mkdir()
        command.begin(out)
        return out

    def log(self) -> Path:
        """A new file for what a process says."""
        return self.folder / f"said{self._tries}-{len(os.listdir(self.folder))}"

    def undisturbed(self, command: Command) -> tuple[Course, Results]:
        """What a run takes and gives; everything it imports is imported here, so that the next ones don't."""
        if command.name not in self.expected:
            out, modules = self.fresh(command), self.folder / "modules"

            def noting() -> int:
                code = command.run(out)
                modules.write_text("\n".join(sorted(sys.modules)))
                return code

            ended = Process(noting, self.log()).end()
            assert ended.code == 0, f"{command.name} doesn't run at all: {ended.said[-3000:]}"
            for name in modules.read_text().splitlines():
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            out = self.fresh(command)
            took, ended = course(lambda: command.run(out), out, self.log())
            assert ended.code == 0, ended.said[-3000:]
            self.expected[command.name] = took, command.found(out)
        return self.expected[command.name]


class Tally:
    """Counts of one row."""

    def __init__(self, fault: str, note: str = "") -> None:
        self.fault, self.note = fault, note
        self.times = self.refused = self.lost = self.doubled = self.wrong = self.crashed = 0

    def compare(self, found: Results, expected: Results) -> None:
        """Results after a fault, with those without."""
        self.lost += len(expected.keys() - found.keys())
        self.doubled += len(found.keys() - expected.keys())
        self.wrong += sum(found[name] != value for name, value in expected.items() if name in found)

    def trouble(self, kind: str, told: str) -> None:
        """Count something that may not be, and tell it for whoever mends it."""
        setattr(self, kind, getattr(self, kind) + 1)
        sys.stderr.write(f"{self.fault}: {kind}: {told[-3000:]}\n")

    def end(self, ended: Ended, words: str) -> None:
        """Count a run that may be refused with these words, or come to its end."""
        self.times += 1
        if ended.refused and words in ended.said:
            self.refused += 1
        elif ended.code != 0:
            self.trouble("crashed", f"{ended.code} {ended.said}")

    def again(self, ground: Ground, command: Command, out: Path) -> None:
        """Run a command to its end, and compare."""
        expected = ground.undisturbed(command)[1]
        ended = Process(lambda: command.run(out), ground.log()).end()
        if ended.code != 0:
            self.trouble("crashed", f"run again: {ended.code} {ended.said}")
            return
        before = (self.lost, self.doubled, self.wrong)
        self.compare(command.found(out), expected)
        if before != (self.lost, self.doubled, self.wrong):
            sys.stderr.write(f"{self.fault}: {before} {(self.lost, self.doubled, self.wrong)} in {out}\n")
        if left(out):
            self.trouble("wrong", f"left behind: {left(out)}")

    def row(self, area: str) -> Outcome:
        """For the table."""
        counts = {name: getattr(self, name) for name in ("refused", "lost", "doubled", "wrong", "crashed")}
        return Outcome(area, self.fault, self.times, note=self.note, **counts)


def run(scale: float, seed: int) -> list[Outcome]:
    """All kinds of faults; see `tests.torture.outcome`."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="tokenflex-faults-"))
    try:
        ground = Ground(folder, seed)
        shop = ground.shop
        savers = [shop.save("save_parts"), shop.save("save_pretrained")]
        if scale < SLOW:
            return few(ground, scale, [shop.feedback(), shop.convert(), *savers])
        commands = [shop.feedback(), shop.train(4), shop.evaluate(), shop.convert()]
        rows = [killed(ground, one, count(KILLS, scale)) for one in (*commands, *savers)]
        rows += [killed(ground, one, count(KILLS * SLOW, scale)) for one in (shop.train(3), shop.quickstart())]
        rows.append(servers.killed(ground, Tally("kill -9: serve"), count(KILLS, scale)).row("Kills"))
        for command in (*commands, savers[0]):
            rows += hardship.disks(ground, command, count(DISKS, scale), Tally)
        rows += [interrupted(ground, one, count(STOPS, scale)) for one in commands]
        waits = (True, False, True, True)
        rows += [pair(ground, one, count(PAIRS, scale), w) for one, w in zip(commands, waits, strict=True)]
        return rows + hardship.vanishing(ground, count(OTHERS, scale), Tally)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def few(ground: Ground, scale: float, commands: Sequence[Command]) -> list[Outcome]:
    """What takes little time of each kind, for the ordinary tests."""
    rows = [killed(ground, one, count(KILLS, scale)) for one in commands]
    rows += hardship.disks(ground, commands[2], count(DISKS, scale), Tally)
    gone = Tally("an image vanishes: feedback", "one line names its row")
    rows.append(hardship.image_gone(ground, commands[0], 1, gone))
    return [*rows, interrupted(ground, commands[0], count(STOPS, scale)), pair(ground, commands[1], 1, waits=True)]


def count(most: float, scale: float) -> int:
    """How often, at least once."""
    return max(round(most * scale), 1)


def killed(ground: Ground, command: Command, times: int) -> Outcome:
    """Kill a command at a random moment, look at what is there, and run it again to its end."""
    tally = Tally(f"kill -9: {command.name}")
    took, _ = ground.undisturbed(command)
    for number in range(times):
        out, moment = ground.fresh(command), took.moment(number + ground.chance.randrange(4), ground.chance)
        ended = Process(lambda out=out: command.run(out), ground.log(), moment).end()
        tally.times += 1
        if not ended.killed and ended.code != 0:
            tally.trouble("crashed", f"{moment} {ended.code} {ended.said}")
        half = command.half(out)
        if half:
            tally.trouble("wrong", f"{moment}: {half}")
        tally.again(ground, command, out)
        shutil.rmtree(out.parent, ignore_errors=True)
    tally.note = f"a run takes {took.changes} changes of files; some kills lie behind the end"
    return tally.row("Kills")


def interrupted(ground: Ground, command: Command, times: int) -> Outcome:
    """Ctrl-C at a random moment: status 130, one line, no traceback; then to the end."""
    tally = Tally(f"Ctrl-C: {command.name}", "status 130 and one line; what was done is kept")
    took, _ = ground.undisturbed(command)
    for number in range(times):
        out, moment = ground.fresh(command), took.moment(number, ground.chance, signal.SIGINT)
        ended = Process(lambda out=out: command.run(out), ground.log(), moment, before=listening).end()
        tally.times += 1
        if ended.code not in (0, 130) or not ended.plain:
            tally.trouble("crashed", f"{moment} {ended.code} {ended.said}")
        tally.again(ground, command, out)
        shutil.rmtree(out.parent, ignore_errors=True)
    return tally.row("Ctrl-C")


def listening() -> None:
    """SIGINT raises KeyboardInterrupt, as in a process that a terminal started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pair(ground: Ground, command: Command, times: int, waits: bool) -> Outcome:
    """Two processes with one folder, the second a random moment behind the first."""
    tally = Tally(f"two at once: {command.name}", "the second waits" if waits else "the second is refused")
    took, expected = ground.undisturbed(command)
    for _ in range(times):
        out = ground.fresh(command)
        first = Process(lambda out=out: command.run(out), ground.log())
        first.wait(ground.chance.uniform(0.0, took.seconds))
        second = Process(lambda out=out: command.run(out), ground.log())
        ends = [first.end(), second.end()]
        tally.times += 1
        tally.refused += sum(ended.refused for ended in ends)
        _judge(tally, ends, waits)
        tally.compare(command.found(out), expected)
        shutil.rmtree(out.parent, ignore_errors=True)
    return tally.row("Two at once")


def _judge(tally: Tally, ends: Sequence[Ended], waits: bool) -> None:
    """Both are done, or one is and the other was refused."""
    fine = all(end.code == 0 for end in ends) or (
        not waits and {end.code for end in ends} == {0, 1} and any(end.refused for end in ends)
    )
    if not fine or not all(end.plain for end in ends):
        tally.trouble("crashed", " | ".join(f"{end.code} {end.said[-1000:]}" for end in ends))
