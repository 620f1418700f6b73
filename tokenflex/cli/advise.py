"""``tokenflex advise``: how large an image has to be for a question, as settings for any other server."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenflex.cli import early
from tokenflex.cli.device import device


def register(commands: Any) -> None:
    """Add the command, with its options, to the parsers of ``tokenflex``."""
    parser = commands.add_parser(
        "advise",
        help="how large an image has to be for a question, as settings for another server",
        description="Let a model's router choose a level for one image and one question, without the layers of its "
        "language model, and print what a server needs to be told: mm_processor_kwargs for vLLM and for transformers' "
        "processors, a size to shrink the image to, and OpenAI's detail. Without MODEL, the quickstart's model.",
    )
    parser.add_argument("image", metavar="PICTURE", help="an image file")
    parser.add_argument("question", metavar="QUESTION", help="what is asked about it")
    parser.add_argument("--model", metavar="MODEL", help="folder or hub id that save_pretrained wrote")
    parser.add_argument("--host", help="folder or hub id of a plain model, with its processor, instead of MODEL")
    parser.add_argument("--parts", help="folder or hub id that save_parts wrote, for --host")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--budget", metavar="KEY=VALUE,...", help="of tokenflex.Budget, as in ratio=0.3 or tokens=200")
    choice.add_argument("--level", type=int, metavar="N", help="this level; the router isn't asked")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run, takes_overrides=False)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Decide the level of an image and a question, and print the size it needs; gives the exit status."""
    early.sources(options.model, options.host, options.parts)
    from transformers.utils import logging

    from tokenflex import images

    seen = images.decode(Path(options.image))  # before anything is loaded
    _refuse_empty(options)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    front = _front(options)
    advice = advise(front, seen, options.question, level=options.level, budget=_budget(front.flex, options.budget))
    if options.json:
        print(json.dumps({"image": options.image, **advice}))
    else:
        _show(advice)
    return 0


def advise(front: Any, image: Any, question: str, *, level: int | None = None, budget: Any = None) -> dict[str, Any]:
    """What was decided for one image, as JSON-ready data.

    Args:
        front: a `tokenflex.serving.Front` with its processor.
        image: a PIL image.
        level, budget: as for `FlexModel.decide`.
    """
    from tokenflex import chat

    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = chat.written(front.processor, [{"role": "user", "content": content}], "the question", reply=True)
    inputs = front.processor(
        images=[image], text=[text], return_tensors="pt", **chat.special_tokens(front.processor, [text])
    )
    found = front.decide(level=level, budget=budget, **inputs.to(front.flex.device))
    tokens, of = sum(one.tokens for one in found), sum(one.of for one in found)
    finest = max(found, key=lambda one: one.level)  # of an image whose tiles are decided one by one
    scale, last = min(math.sqrt(tokens / of), 1.0), front.flex.compressor.num_levels - 1
    return {
        "level": finest.level,
        "levels": last + 1,
        "tokens": tokens,
        "of": of,
        "scores": None if finest.scores is None else [round(score, 4) for score in finest.scores.tolist()],
        "mm_processor_kwargs": dict(finest.processor) if len(found) == 1 else {},
        "resize": {
            name: max(round(side * scale), 1) for name, side in zip(("width", "height"), image.size, strict=True)
        },
        "detail": {0: "low", last: "high"}.get(finest.level, "auto"),
    }


def _refuse_empty(options: argparse.Namespace) -> None:
    from tokenflex.errors import ConfigError

    if not options.question.strip():
        raise ConfigError("the question is empty; write what is asked about the image.")
    if options.model and (options.host or options.parts):
        raise ConfigError("give either --model, or --host with --parts.")
    if bool(options.host) != bool(options.parts):
        raise ConfigError("--host needs --parts, whose router decides, and --parts need the --host they are for.")


def _front(options: argparse.Namespace) -> Any:
    from tokenflex.cli.quickstart_model import quickstart_model
    from tokenflex.errors import ConfigError
    from tokenflex.serving import Front

    source = options.model or options.host or quickstart_model()
    try:
        front = Front.from_pretrained(source, options.parts, dtype=options.dtype, device=device(options.device))
    except OSError as error:
        raise ConfigError(f"{source!r} can't be loaded: {error}") from error
    if front.processor is None:
        raise ConfigError(f"{source!r} has no processor beside its model; save it into the same folder.")
    return front


def _budget(flex: Any, text: str | None) -> Any:
    from tokenflex.evaluation import parse

    return None if text is None else parse(flex, [f"router@{text}"])[0].budget


def _show(advice: dict[str, Any]) -> None:
    export = {"mm_processor_kwargs": advice["mm_processor_kwargs"]}
    print(f"level      {advice['level']} of 0 to {advice['levels'] - 1}")
    print(f"tokens     {advice['tokens']} of {advice['of']} ({advice['tokens'] / advice['of']:.0%})")
    print(f"processor  {json.dumps(export) if export['mm_processor_kwargs'] else 'takes no size per image; resize it'}")
    print(f"resize     {advice['resize']['width']} x {advice['resize']['height']} pixels")
    print(f"detail     {advice['detail']}")
