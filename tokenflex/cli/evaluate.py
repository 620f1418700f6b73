"""``tokenflex evaluate``: accuracy and visual tokens on a data set, at every level, routed, and against baselines."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tokenflex import bars
from tokenflex.cli import early
from tokenflex.cli.device import device

QUICKSTART, QUESTIONS, QUICKSTART_BATCH = "quickstart", 1536, 96
WAITING = "Another process is answering into {}; waiting for its end."


def register(commands: Any) -> None:
    """Add the command, with its options, to the parsers of ``tokenflex``."""
    parser = commands.add_parser(
        "evaluate",
        help="accuracy and visual tokens on a data set, at every level, routed, and against baselines",
        description="Answer the questions of a data set with generate, in one or many settings, and write "
        "summary.json, report.md and report.html. Stopped or killed, it goes on where it was; under torchrun each "
        "process takes its share. Settings: levels, level:N, router, router@ratio=0.3 (or any other budget), "
        "escalate@threshold=0.9, router+escalate@threshold=0.9, random, scaler:NAME, scaler:NAME:N. Without MODEL, the "
        "quickstart's model; without --data, the quickstart's exam.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or hub id of a saved FlexModel")
    parser.add_argument("--host", help="folder or hub id of a plain host, instead of MODEL")
    parser.add_argument("--parts", help="folder or hub id of trained parts for --host")
    parser.add_argument("--data", help=".json, .jsonl or .parquet file, a saved datasets folder, or quickstart:SEED:N")
    parser.add_argument("--image-folder", help="where image paths start, and must stay below")
    parser.add_argument("--metric", metavar="NAME",
                        help="exact-match, vqa, relaxed, anls, multiple-choice, or module:function")  # fmt: skip
    parser.add_argument("--settings", nargs="+", metavar="SETTING",
                        help="what to compare (default: levels, and router where it is trained)")  # fmt: skip
    parser.add_argument("--suffix", default="", help="written under each question, e.g. 'Answer with one word.'")
    parser.add_argument("--out", default="evaluation", help="folder of the results (default: evaluation)")
    parser.add_argument("--batch-size", type=int, metavar="N",
                        help=f"questions at a time (default: 8; {QUICKSTART_BATCH} for quickstart)")  # fmt: skip
    parser.add_argument("--max-new-tokens", type=int, default=16, metavar="N", help="longest answer (default: 16)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--resamples", type=int, default=2000, metavar="N", help="of the bootstrap (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--report-only", metavar="OUT", help="write the report of a finished evaluation again")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.set_defaults(run=run, takes_overrides=False)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Answer what isn't answered yet, report when everything is, and print; progress goes to standard error."""
    early.settings(options.settings)
    early.sources(options.model, options.host, options.parts, options.report_only)
    from tokenflex.errors import ConfigError
    from tokenflex.evaluation.report import report

    if options.resamples < 1:
        raise ConfigError(f"--resamples {options.resamples}: use 1 or more; 2000 is usual.")
    folder = options.report_only
    if folder is None:
        folder = options.out
        missing = _answer(options)
        if missing:
            left = ", ".join(f"{name}: {count}" for name, count in missing.items())
            print(f"This process is done; answers of others are still missing ({left}). The last one to finish writes "
                  f"the report, and so does 'tokenflex evaluate --report-only {folder}'.", file=sys.stderr)  # fmt: skip
            return 0
    summary = report(folder, resamples=options.resamples, seed=options.seed)
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        _show(summary, folder)
    return 0


def _answer(options: argparse.Namespace) -> dict[str, int]:
    """The pass; gives what is missing afterwards."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # metrics in the current folder are found, as by python -m
    from transformers.utils import logging

    from tokenflex.evaluation import evaluate, load, metrics, parse

    if options.metric:
        metrics.find(options.metric)  # before anything is loaded
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    model = options.model if options.model or options.host else _default_model(options)
    flex, processor = load(
        model, host=options.host, parts=options.parts, dtype=options.dtype, device=device(options.device)
    )
    questions, data, metric = _questions(options, processor)
    settings = parse(flex, options.settings or ["levels", *([] if _untrained(options) else ["router"])])
    _refuse_untrained(options, [setting.name for setting in settings])
    with _bar(processes, rank) as (begun, tick):
        evaluation = evaluate(
            flex, processor, questions, metric, settings, options.out,
            batch_size=options.batch_size or (QUICKSTART_BATCH if _is_quickstart(options.data) else 8),
            max_new_tokens=options.max_new_tokens, names=(model or _named(options), data),
            process=(rank, processes), command=options.typed,
            waiting=lambda: print(WAITING.format(options.out), file=sys.stderr),
            begun=begun, tick=tick,
        )  # fmt: skip
    return evaluation.missing([setting.name for setting in settings])


def _named(options: argparse.Namespace) -> str:
    return f"{options.host} with {options.parts}" if options.parts else options.host


def _untrained(options: argparse.Namespace) -> bool:
    return bool(options.host and not options.parts)


def _refuse_untrained(options: argparse.Namespace, names: Sequence[str]) -> None:
    from tokenflex.errors import ConfigError

    if _untrained(options) and any(name.startswith("router") for name in names):
        raise ConfigError("--host without --parts has no trained router; give --parts, or leave the router out.")


def _default_model(options: argparse.Namespace) -> str:
    from tokenflex.cli.quickstart_model import quickstart_model
    from tokenflex.errors import ConfigError

    if not _is_quickstart(options.data):
        raise ConfigError("no model was given: name a saved FlexModel, or a host with --host and its --parts.")
    return quickstart_model()


def _questions(options: argparse.Namespace, processor: Any) -> tuple[Any, str, str]:
    """(questions, what the data is called, metric)."""
    from tokenflex.errors import ConfigError
    from tokenflex.evaluation import Questions, read

    settings = {"image_folder": options.image_folder, "suffix": options.suffix, "limit": options.limit}
    if _is_quickstart(options.data):
        seed, rows = _exam(options.data or QUICKSTART, processor)
        return Questions(rows, **settings), f"{QUICKSTART}:{seed}:{len(rows)}", options.metric or "exact-match"
    if options.metric is None:
        raise ConfigError("--metric is missing: exact-match, vqa, relaxed, anls, multiple-choice, or module:function.")
    return read(options.data, **settings), options.data, options.metric


def _is_quickstart(data: str | None) -> bool:
    return data is None or data.split(":")[0] == QUICKSTART


def _exam(data: str, processor: Any) -> tuple[int, list[dict[str, Any]]]:
    """Seed and rows of the quickstart's held-out questions.

    Args:
        data: ``quickstart``, ``quickstart:SEED`` or ``quickstart:SEED:N``.
    """
    from tokenflex.errors import ConfigError
    from tokenflex.quickstart.images import exam, words

    unknown = set(words()) - set(processor.tokenizer.get_vocab())
    if unknown:
        raise ConfigError(
            f"the quickstart's exam can't be asked: this model's tokenizer doesn't know {len(unknown)} of its words "
            f"(such as {min(unknown)!r}). Give other --data and a --metric."
        )
    numbers = data.split(":")[1:]
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers) or numbers[1:] == ["0"]:
        raise ConfigError(f"--data {data}: write quickstart, quickstart:SEED or quickstart:SEED:N, N at least 1.")
    seed, count = (int(numbers[i]) if len(numbers) > i else default for i, default in ((0, 0), (1, QUESTIONS)))
    rows = [
        {"image": image.image, "question": asked.question, "answer": asked.answer, "kind": asked.kind}
        for image, asked in exam(seed, "test", count)
    ]
    return seed, rows


@contextlib.contextmanager
def _bar(processes: int, rank: int) -> Iterator[tuple[Callable[[int, int], None], Callable[[int], None]]]:
    """A progress bar over answers on standard error, of the first process only."""
    what = "answers" if processes == 1 else f"answers, 1 of {processes} processes"
    with bars.bar(what=what, unit="answer", hidden=rank != 0) as bar:

        def begun(done: int, total: int) -> None:
            bar.reset(total)
            bar.n = bar.initial = done
            bar.refresh()

        def tick(more: int) -> None:
            bar.update(more)

        yield begun, tick


def _show(summary: Any, folder: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from tokenflex.evaluation.lines import HEADER, NARROW, facts, header, notes, setting_lines

    console = Console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    heads = header(summary)
    shown = (*NARROW, *range(len(HEADER), len(heads)))
    for i in shown:
        table.add_column(heads[i], justify="right" if i else "left", no_wrap=True)
    for line in setting_lines(summary):
        table.add_row(*(line.cells[i] for i in shown))
    console.print(table)
    console.print(f"{facts(summary)} {' '.join(notes(summary))}")
    console.print(f"Wrote summary.json, report.md and report.html to {folder}")
