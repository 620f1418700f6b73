"""``tokenflex profile``: time, memory and work of a model, beside its host without parts."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenflex import bars
from tokenflex.cli import early
from tokenflex.cli.device import device
from tokenflex.errors import ConfigError

PARTS = ("scaler", "router", "voter")
UNTRAINED = "The parts are untrained: what is chosen means nothing, so see the forced levels and the decision's time."


def register(commands: Any) -> None:
    """Add the command, with its options, to the parsers of ``tokenflex``."""
    parser = commands.add_parser(
        "profile",
        help="time, memory and FLOPs at every level and routed, beside the vanilla host",
        description="Measure a model at forced levels, routed, and within budgets, always beside the vanilla host with "
        "the same weights, attention kernel, dtype, prompt and number of new tokens; and say from how many visual "
        "tokens on routing pays, or that it doesn't.",
    )
    model = parser.add_argument_group("model: MODEL, or --host with --parts or names of parts")
    model.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="folder or hub id that save_pretrained wrote; the quickstart's by default",
    )
    model.add_argument("--host", help="folder or hub id of a plain model, with its processor")
    model.add_argument("--parts", help="folder or hub id that save_parts wrote")
    for kind in PARTS:
        model.add_argument(f"--{kind}", metavar="NAME", help=f"untrained parts: the {kind}'s registered name")
    model.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
                       help="of the host (default: as saved)")  # fmt: skip
    model.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    model.add_argument("--attn", metavar="NAME", help="attention implementation: eager, sdpa, flash_attention_2, ...")
    asked = parser.add_argument_group("what is asked; given several times, rows of a batch take turns")
    asked.add_argument("--image", action="append", type=Path, metavar="PATH", help="default: a photograph of a cat")
    asked.add_argument("--prompt", action="append", metavar="TEXT", help="default: what the image shows")
    much = parser.add_argument_group("how much is measured")
    much.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="default: 1 8 32")
    much.add_argument("--answer", type=int, nargs="+", default=[1, 64], metavar="N", help="new tokens; default: 1 64")
    much.add_argument("--level", type=int, nargs="+", metavar="N",
                      help="forced levels, besides coarsest and finest (default: all)")  # fmt: skip
    much.add_argument("--budget", action="append", default=[], metavar="KEY=VALUE[,...]",
                      help="also routed within a budget, e.g. ratio=0.3 or tokens=200; may be repeated")  # fmt: skip
    much.add_argument("--mix", nargs="+", default=[], metavar="SHARE",
                      help="also routed, with levels that differ within the batch and keep a share of the tokens: "
                      "AI2D, ScienceQA, ChartQA (14.7, 54.9, 99.1 %%), or a share such as 0.3")  # fmt: skip
    much.add_argument("--escalate", action="append", default=[], metavar="KEY=VALUE[,...]",
                      help="also with coarse answers, and finer ones where the model is unsure, e.g. threshold=0.9 or "
                      "threshold=0.9,levels=[0,4]; may be repeated")  # fmt: skip
    much.add_argument("--runs", type=int, default=20, help="timed runs per setting; fewer than 20 bring a warning")
    much.add_argument("--warm-up", type=int, default=3, help="runs before them (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write profile.json, profile.md and profile.html")
    parser.set_defaults(run=run, takes_overrides=False)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Measure and print; progress goes to standard error."""
    for kind in PARTS:
        early.part(kind, getattr(options, kind))
    _require_clear(options)
    from rich.console import Console
    from transformers.utils import logging

    from tokenflex.cli.quickstart_model import quickstart_model
    from tokenflex.model.sources import load
    from tokenflex.profiling import Plan, profile, report
    from tokenflex.profiling.mix import read_mix
    from tokenflex.profiling.requests import Requests, photograph, question
    from tokenflex.profiling.run import steps

    if min(options.batch) < 1:
        raise ConfigError(f"--batch {min(options.batch)}: a batch has 1 row or more.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.model is None and options.host is None and not options.parts:
        options.model = quickstart_model()
    flex, processor = load(
        options.model, host=options.host, parts=options.parts, untrained=_named(options), dtype=options.dtype,
        device=device(options.device), attn_implementation=options.attn,
    )  # fmt: skip
    images = [_opened(path) for path in options.image or ()] or [photograph()]
    requests = Requests(images, options.prompt or [question(processor)])
    plan = Plan(
        levels=options.level,
        budgets={text: _budget(text) for text in options.budget},
        mixes={text: read_mix(text) for text in options.mix},
        escalations={text: allowed for text in options.escalate if (allowed := _escalate(flex, text))},
        answers=options.answer,
        runs=options.runs,
        warm_up=options.warm_up,
        request=_described(options, requests),
    )
    sizes = sorted(set(options.batch))
    batches = [requests.batch(processor, rows, device=flex.device, dtype=flex.host.dtype) for rows in sizes]
    total = len(batches) * steps(plan, flex.compressor.num_levels)
    with bars.bar(total, what="profile", unit="run") as bar:
        found = profile(flex, batches, plan, tick=bar.update)
    found = dataclasses.replace(found, command=options.typed)
    if options.host and not options.parts and any(True for _ in flex.compressor.parameters()):
        found = dataclasses.replace(found, warnings=(*found.warnings, UNTRAINED))
    if options.out:
        report.write(options.out, found)
    if options.json:
        print(json.dumps(found.to_dict()))
    else:
        console = Console()
        report.show(console if console.is_terminal else Console(width=160), found)
    return 0


def _named(options: argparse.Namespace) -> dict[str, Any]:
    return {kind: name for kind in PARTS if (name := getattr(options, kind)) is not None}


def _require_clear(options: argparse.Namespace) -> None:
    """Refuse what doesn't say which model is meant; nothing at all means the quickstart's.

    Raises:
        ConfigError: names the options.
    """
    named = _named(options)
    if (options.model is None) == (options.host is None) and (options.model or options.parts or named):
        raise ConfigError("name either MODEL, or --host with --parts or with names of parts.")
    if options.model is not None and (options.parts or named):
        raise ConfigError(f"{options.model} brings its own parts; to use others, name its host with --host.")
    if options.parts and named:
        raise ConfigError(f"--parts {options.parts} brings all parts; leave out --{', --'.join(named)}.")
    early.sources(options.model, options.host, options.parts)


def _opened(path: Path) -> Any:
    from tokenflex.errors import ConfigError, DataError
    from tokenflex.images import decode

    try:
        return decode(path)
    except DataError as error:
        raise ConfigError(f"--image {path} can't be read: {error.__cause__}.") from error


def _budget(text: str) -> Any:
    """The settings of a budget from a text such as ``ratio=0.3,floor=1``."""
    import yaml

    from tokenflex.model import Budget

    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(sign for _, sign, _ in pairs):
        raise ConfigError(f"--budget {text}: write KEY=VALUE, e.g. ratio=0.3 or tokens=200,floor=1.")
    try:
        budget: Any = Budget.from_dict({key.strip(): yaml.safe_load(value) for key, _, value in pairs})
    except ConfigError as error:
        raise ConfigError(f"--budget {text}: {error}") from error
    return budget


def _escalate(flex: Any, text: str) -> Any:
    """``threshold=0.9,levels=[0,4]`` as what answers are allowed to."""
    from tokenflex.evaluation.settings import parse

    try:
        return parse(flex, [f"escalate@{text}"])[0].escalate
    except ConfigError as error:
        raise ConfigError(f"--escalate {text}: {error}") from error


def _described(options: argparse.Namespace, requests: Any) -> str:
    names = [path.name for path in options.image or ()] or ["scikit-image's cat"]
    sizes = [f"{name} ({image.width} x {image.height})" for name, image in zip(names, requests.images, strict=True)]
    return f"{', '.join(sizes)}; {', '.join(repr(prompt) for prompt in requests.prompts)}"
