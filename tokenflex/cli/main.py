"""Entry point: ``tokenflex COMMAND``. Help never imports torch; each command imports what it needs when it runs."""

import _thread
import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tokenflex
from tokenflex.cli import (
    advise,
    check,
    convert,
    demo,
    evaluate,
    feedback,
    hosts,
    plugins,
    profile,
    quickstart,
    serve,
    study,
    train,
)
from tokenflex.errors import TokenFlexError, nearest
from tokenflex.files import unwritten

COMMANDS = (
    quickstart, demo, study, feedback, train, evaluate, advise, serve, profile, convert, hosts, plugins, check
)  # fmt: skip

AGAIN = " Run the same command again: it goes on where it was."
GO_ON = {
    "quickstart": AGAIN,
    "study": AGAIN,
    "feedback": AGAIN,
    "evaluate": AGAIN,
    "train": " With --resume_from_checkpoint true the same command goes on from the newest whole checkpoint (the "
    "recipe's save_strategy and save_steps say how often there is one).",
    "convert": " Nothing was written to its folder; run it again.",
    "profile": " Nothing was written; run it again, with fewer --runs for a first look.",
}
"""What to do after Ctrl-C."""
MOMENT = 0.01
"""Seconds after which Ctrl-C is raised again where it couldn't be raised."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, with every command's own parser in it."""
    parser = argparse.ArgumentParser(prog="tokenflex", description=tokenflex.__doc__)
    parser.add_argument("--version", action="version", version=f"tokenflex {tokenflex.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.register(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 1 when it can't be done, with one message on standard error, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    asked: list[int] = []
    try:
        with _noting(asked):
            return _run(arguments)
    except (KeyboardInterrupt, Exception) as error:
        if not asked and not isinstance(error, KeyboardInterrupt):
            raise
        command = next((word for word in arguments if not word.startswith("-")), "")
        print(f"\ntokenflex {command}: interrupted.{GO_ON.get(command, '')}", file=sys.stderr)
        return 130


@contextmanager
def _noting(asked: list[int]) -> Iterator[None]:
    """Within, Ctrl-C is noted as well as raised: code in C may make another error of it, as matplotlib's does.

    Where it comes while Python clears an object away, nothing can be raised; then it is raised a moment later.
    """
    told, waiting = sys.unraisablehook, list[threading.Timer]()

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        signal.default_int_handler(number, frame)

    def later(unraisable: Any) -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            told(unraisable)
            return
        again = threading.Timer(MOMENT, _thread.interrupt_main)  # raised here it would be lost just so
        again.daemon = True
        waiting.append(again)
        again.start()

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, note)
    sys.unraisablehook = later
    try:
        yield
    finally:
        sys.unraisablehook = told
        for again in waiting:
            again.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(arguments: Sequence[str]) -> int:
    """A command, with what it refuses told in one line; Ctrl-C gets out."""
    known = [command.__name__.rpartition(".")[2] for command in COMMANDS]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        build_parser().error(
            f"there is no command {arguments[0]!r}.{nearest(arguments[0], known)} There are {', '.join(known)}."
        )
    options, rest = build_parser().parse_known_args(arguments)
    if rest and not options.takes_overrides:
        build_parser().error(f"unrecognized arguments: {' '.join(rest)}")
    options.typed = shlex.join(["tokenflex", *arguments])  # for reports, which say how they were made
    try:
        done = options.run(options, rest)
        sys.stdout.flush()  # here, where it can be told if standard output is a file on a full disk
        return done
    except TokenFlexError as error:
        return _told(options.command, str(error))
    except BrokenPipeError:  # whoever read standard output has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        reason = unwritten(error)
        if reason is None:
            raise
        where = error.filename2 or error.filename
        named = f"{os.fsdecode(where)}" if isinstance(where, str | bytes) else "a file"
        return _told(options.command, f"{named} can't be read or written: {reason}")


def _told(command: str, message: str) -> int:
    """Say why a command can't be done; its exit status."""
    print(f"tokenflex {command}: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
