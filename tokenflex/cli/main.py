"""Entry point: ``tokenflex COMMAND``. Help never imports torch; each command imports what it needs when it runs."""

import argparse
import sys
from collections.abc import Sequence

import tokenflex
from tokenflex.cli import advise, check, convert, evaluate, feedback, hosts, plugins, profile, quickstart, serve, train
from tokenflex.errors import TokenFlexError, nearest

COMMANDS = (quickstart, feedback, train, evaluate, advise, serve, profile, convert, hosts, plugins, check)

AGAIN = " Run the same command again: it goes on where it was."
GO_ON = {
    "quickstart": AGAIN,
    "feedback": AGAIN,
    "evaluate": AGAIN,
    "train": " With --resume_from_checkpoint true the same command goes on from the newest whole checkpoint (the "
    "recipe's save_strategy and save_steps say how often there is one).",
    "convert": " Nothing was written to its folder; run it again.",
    "profile": " Nothing was written; run it again, with fewer --runs for a first look.",
}
"""What to do after Ctrl-C."""


def build() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = argparse.ArgumentParser(prog="tokenflex", description=tokenflex.__doc__)
    parser.add_argument("--version", action="version", version=f"tokenflex {tokenflex.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.register(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 1 when it refused its input, with one message on standard error."""
    words = sys.argv[1:] if argv is None else argv
    known = [command.__name__.rpartition(".")[2] for command in COMMANDS]
    if words and not words[0].startswith("-") and words[0] not in known:
        build().error(f"there is no command {words[0]!r}.{nearest(words[0], known)} There are {', '.join(known)}.")
    options, rest = build().parse_known_args(words)
    if rest and not options.takes_overrides:
        build().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return options.run(options, rest)
    except TokenFlexError as error:
        print(f"tokenflex {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ntokenflex {options.command}: interrupted.{GO_ON.get(options.command, '')}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
