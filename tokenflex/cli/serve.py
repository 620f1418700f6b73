"""``tokenflex serve``: an OpenAI-compatible endpoint for a model."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from tokenflex.cli import early
from tokenflex.cli.device import device

ENGINES = ("transformers", "vllm")
KEY = "TOKENFLEX_UPSTREAM_KEY"
"""Environment variable with the vLLM server's key, if it has one."""
EXTRA = ("starlette", "uvicorn", "prometheus_client", "httpx", "pydantic")


def register(commands: Any) -> None:
    """Add the command, with its options, to the parsers of ``tokenflex``."""
    parser = commands.add_parser(
        "serve",
        help="answer OpenAI's chat completions, with as many visual tokens as an image needs",
        description="Serve /v1/chat/completions, /v1/models, /health and /metrics. Requests choose by "
        'image_url.detail (low, auto, high: coarsest level, routed, finest), or by a key "tokenflex" of the body: '
        '{"level": 1}, {"budget": {"ratio": 0.3}} or {"conversation": {"tokens": 2000}}. Images come as data: URLs. '
        "Needs the extra 'serve'.",
    )
    model = parser.add_argument_group("model: MODEL, or --host with --parts")
    model.add_argument("model", nargs="?", metavar="MODEL",
                       help="folder or hub id that save_pretrained wrote; the quickstart's by default")  # fmt: skip
    model.add_argument("--host", help="folder or hub id of a plain model, with its processor")
    model.add_argument("--parts", help="folder or hub id that save_parts wrote")
    model.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    model.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    model.add_argument("--served-name", metavar="NAME", help="as clients call it (default: MODEL as given)")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--engine", choices=ENGINES, default="transformers",
                        help="generate here, or send embeddings to a vLLM server (default: transformers)")  # fmt: skip
    engine.add_argument("--upstream", metavar="URL",
                        help=f"the vLLM server's address, for --engine vllm; its key, if any, in {KEY}")  # fmt: skip
    engine.add_argument("--upstream-model", metavar="NAME", help="its name there (default: the first it lists)")
    engine.add_argument("--upstream-folder", metavar="DIR",
                        help="the checkpoint it serves, to check that the embeddings are made for it")  # fmt: skip
    engine.add_argument("--positions", choices=("compact", "span"), help="of hosts with M-RoPE, for --engine vllm")
    where = parser.add_argument_group("where")
    where.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1, this machine only")
    where.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    _add_limits(parser.add_argument_group("limits"))
    parser.set_defaults(run=run, takes_overrides=False)


def _add_limits(group: Any) -> None:
    group.add_argument("--max-requests", type=int, default=32, metavar="N",
                       help="read, waiting and being answered; others get 429 (default: 32)")  # fmt: skip
    group.add_argument("--max-batch", type=int, default=8, metavar="N", help="answered together (default: 8)")
    group.add_argument("--batch-wait", type=float, default=5.0, metavar="MS",
                       help="milliseconds to wait for more (default: 5)")  # fmt: skip
    group.add_argument("--max-images", type=int, default=8, metavar="N", help="per request (default: 8)")
    group.add_argument("--conversation-tokens", type=int, metavar="N",
                       help="visual tokens that all images of a request share, older ones becoming coarser "
                       "(default: each image for itself)")  # fmt: skip
    group.add_argument("--max-pixels", type=float, default=48.0, metavar="M",
                       help="millions, of a request's images together (default: 48)")  # fmt: skip
    group.add_argument("--max-body", type=float, default=24.0, metavar="MIB", help="of a request (default: 24)")
    group.add_argument("--max-new-tokens", type=int, default=1024, metavar="N",
                       help="longest answer that may be asked for (default: 1024)")  # fmt: skip
    group.add_argument("--allow-images-from", nargs="+", default=[], metavar="NAME[:PORT]",
                       help="fetch http(s) images from these servers (default: from none)")  # fmt: skip
    group.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS",
                       help="to read a request, and to fetch its images (default: 10)")  # fmt: skip


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Serve the model until interrupted; gives the exit status."""
    early.sources(options.model, options.host, options.parts)
    early.packages(EXTRA, "pip install 'tokenflex[serve]'")
    import uvicorn
    from transformers.utils import logging

    from tokenflex.cli.quickstart_model import quickstart_model
    from tokenflex.errors import ConfigError
    from tokenflex.serving.server.app import create
    from tokenflex.serving.server.metrics import Metrics

    if (options.engine == "vllm") != bool(options.upstream):
        raise ConfigError("--engine vllm needs --upstream, the address of a vLLM server; other engines have none.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.model is None and options.host is None:
        options.model = quickstart_model()
    bounds, metrics = limits(options), Metrics()
    name: Any = options.served_name or options.model or options.host
    app = create(_engine(options, bounds, metrics), name, bounds, metrics)
    print(f"tokenflex serve: {name}, answered by {options.engine}", file=sys.stderr)
    uvicorn.run(app, host=options.bind, port=options.port, access_log=False, timeout_graceful_shutdown=10)
    return 0


def limits(options: argparse.Namespace) -> Any:
    """What requests may cost.

    Raises:
        ConfigError: a number isn't above 0.
    """
    from tokenflex.serving.server.limits import MIB, Limits

    return Limits(
        requests=options.max_requests,
        batch=options.max_batch,
        wait=options.batch_wait / 1000,
        images=options.max_images,
        conversation=options.conversation_tokens,
        body=int(options.max_body * MIB),
        pixels=int(options.max_pixels * 1_000_000),
        new_tokens=options.max_new_tokens,
        seconds=options.timeout,
        hosts=frozenset(options.allow_images_from),
    )


def _engine(options: argparse.Namespace, bounds: Any, metrics: Any) -> Any:
    if options.engine == "vllm":
        from tokenflex.errors import ConfigError
        from tokenflex.serving import Front
        from tokenflex.serving.server.vllm_engine import VllmEngine

        source, settings = options.model or options.host, {"dtype": options.dtype, "positions": options.positions}
        try:
            front = Front.from_pretrained(source, options.parts, device=device(options.device), **settings)
        except OSError as error:
            raise ConfigError(f"{source!r} can't be loaded: {error}") from error
        if options.upstream_folder:
            front.require_engine(options.upstream_folder)
        key = os.environ.get(KEY)
        return VllmEngine(front, options.upstream, bounds, model=options.upstream_model, key=key, seen=metrics.batch)
    from tokenflex.model.sources import load
    from tokenflex.serving.server.transformers_engine import TransformersEngine

    flex, processor = load(
        options.model, host=options.host, parts=options.parts, dtype=options.dtype, device=device(options.device)
    )
    return TransformersEngine(flex, processor, bounds, metrics.batch)
