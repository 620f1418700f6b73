"""Entry point: ``tokenflex COMMAND``. Help never imports torch; each command imports what it needs when it runs."""

import argparse
import sys
from collections.abc import Sequence

import tokenflex
from tokenflex.cli import advise, check, convert, evaluate, feedback, hosts, plugins, profile, quickstart, serve, train
from tokenflex.errors import TokenFlexError

COMMANDS = (quickstart, feedback, train, evaluate, advise, serve, profile, convert, hosts, plugins, check)


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
    options, rest = build().parse_known_args(argv)
    if rest and not options.takes_overrides:
        build().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return options.run(options, rest)
    except TokenFlexError as error:
        print(f"tokenflex {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ntokenflex {options.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
