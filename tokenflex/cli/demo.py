"""``tokenflex demo``: a page on which a model is asked about images, with what its router chose."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from tokenflex.cli import early
from tokenflex.cli.device import device

PORT = 7860
EXTRA = ("gradio", "skimage", "sklearn")


def register(commands: Any) -> None:
    """Add the command, with its options, to the parsers of ``tokenflex``."""
    parser = commands.add_parser(
        "demo",
        help="a page in the browser: ask about an image, see the chosen grid, move the budget",
        description="Serve a page on this machine. Choose an image or upload one and ask: it shows the answer, the "
        "chosen grid, the router's scores, and visual tokens and milliseconds beside the finest level; a slider sets "
        "the budget. Without --model, the quickstart's model, which is trained first if there is none. Needs the extra "
        "'demo'. Nothing is asked of other machines, unless with --share.",
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="folder or hub id of a saved FlexModel with its processor (default: the quickstart's)",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1, this machine only")
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0 takes a free one")
    parser.add_argument(
        "--share", action="store_true", help="also give the page a public address, through a server of gradio's"
    )
    parser.add_argument("--runs", type=int, default=3, metavar="N",
                        help="answers timed per side, each time; 0: don't time (default: 3)")  # fmt: skip
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="longest answer (default: 32)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.set_defaults(run=run, takes_overrides=False)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Serve the page until Ctrl-C; gives the exit status."""
    early.sources(options.model)
    _require_numbers(options)
    early.packages(EXTRA, 'pip install "tokenflex[demo]"')
    from transformers.utils import logging

    from tokenflex.cli.quickstart_model import quickstart_model
    from tokenflex.demo import page
    from tokenflex.demo.address import free_port
    from tokenflex.demo.answering import Model
    from tokenflex.demo.samples import examples
    from tokenflex.evaluation import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    free_port(options.host, options.port)  # before anything is trained or loaded
    name = options.model or quickstart_model()
    flex, processor = load(name, dtype=options.dtype, device=device(options.device))
    model = Model(flex, processor, name, options.max_new_tokens)
    where = {"host": options.host, "port": options.port, "share": options.share, "runs": options.runs}
    with page.running(model, examples(processor), **where) as address:
        print(f"tokenflex demo: {name} on {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        wait()
    return 0


def wait() -> None:
    """Return when the user presses Ctrl-C."""
    import threading

    threading.Event().wait()


def _require_numbers(options: argparse.Namespace) -> None:
    from tokenflex.errors import ConfigError

    if options.runs < 0:
        raise ConfigError(f"--runs {options.runs}: use 1 or more, or 0 to time nothing.")
    if options.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens {options.max_new_tokens}: use 1 or more.")
