"""How right answers about faded pictures are: a conversation of 12 pictures, and what is asked about them.

python -m benchmarks.conversation_answers --out benchmarks/results/conversation_answers.md \
    --svg docs/images/conversation_answers.svg

A small Qwen2.5-VL learns, from nothing, to talk about several pictures; the library's router learns which of them a
question needs in detail. Then held-out conversations are answered with all pictures fine, all coarse, the oldest
deleted, and faded.
"""

import argparse
import datetime
import io
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks import report
from benchmarks.fading import routing, run, settings
from benchmarks.fading.learning import Practice
from benchmarks.fading.pictures import NAMES
from benchmarks.fading.questions import KINDS
from tokenflex.files import write_whole

CHANCE = {"digit by name": 1 / 10, "digit by looks": 1 / 10, "photograph by name": 1 / 6, "name by looks": 1 / 12}
PLANS = {
    "full": run.Plan(
        practices=(
            Practice((1, 3), 0.3, 200, 48, 4, 1e-3),
            Practice((2, 12), 0.7, 250, 20, 8, 1e-3),
            Practice((1, 12), 0.7, 500, 20, 8, 1e-3, last=True),
        )
    ),
    "tiny": run.Plan(
        stock=24, tower_steps=1, practices=(Practice((1, 2), 0.5, 1, 2, 1, 1e-3),), router_rows=8, router_steps=1,
        conversations=2, each=4, walks=2,
    ),
}  # fmt: skip
PROTOCOL = """\
**Task.** Pictures of 64 x 64 pixels with a printed letter (the picture's name), four handwritten digits in four inks,
and one of 6 photographs in one of 4 washes behind them. A conversation shows 12 pictures of different names, one per
turn, each with a question. Questions: the digit of an ink in the picture of a name (`picture G red`) or of the only
one that looks so (`with cat teal red`); the photograph of a name (`picture G photo`); which of all pictures looks so
(`which cat teal`). Exam: {questions} questions behind the last picture of {conversations} held-out conversations, in
equal shares of the four kinds, about any of the pictures; none was asked before in its conversation. The curve asks
after every picture of {walks} more conversations. Test pictures share no scan of a digit with training pictures; the
photographs are the same six. Earlier turns have their right answers. Answers are one word of `generate`, "absent"
excluded, which is right for no exam question. Guessing gets {chance:.2f}.

**Model.** Qwen2.5-VL of transformers' own classes, {fine} visual tokens per picture at the finest level, 8, 4, 2, 1
by average pooling. Nothing is pretrained, so some of what a pretrained model brings along is given: stage 0 teaches
the tower to name digit, ink, letter, photograph and wash from every token; least squares turn its tokens into sums of
word vectors; the language model's first two layers begin by attending to the word before, the others by looking for
tokens alike. Then the language model learns conversations of 1 to 12 pictures from training pictures, 30 % of them,
later 70 %, with random levels per picture. Router: the library's `avg` (`attend="tokens"`, one head, 6 words in text
order), its rows too beginning by attending to their like; trained by `RGLFTrainer` (tolerance {tolerance},
cross-entropy weighted {sure:.0f}, ranking {rank}, so that its scores can be read as probabilities) from the stored
feedback of {rows} rows of one picture, half of which ask about another picture (answer: "absent"). It never saw a
conversation. Tower and language model are trained in plain loops.

**Left out.** Questions whether *any* picture is of a photograph (yes, no) weren't learnt in the time given: right
half of the time even with all pictures fine, so they could tell nothing about settings. In a short trial (80 other
questions about test pictures, a model trained for less time, tolerance 0.2) scores from the ranking loss as it is
published made `Fade` raise seven pictures a little instead of one enough; so the loss is weighted as said. Weights,
tolerance and lengths of training were chosen on such trials, not on this exam's questions.

**Settings.** *all fine*: {all} tokens. *delete oldest*: only as many of the newest pictures as fit, fine; what was
said stays. *fade by age*: `Fade(tokens=..., recall=0.0)`. *fade + router*: `Fade(tokens=...)`, its defaults; at 25 %
`newest=0.4, step=1, recall=0.35`, since half of so few tokens hold no two fine pictures. *shuffled*: the router's
scores, each given to another picture of the conversation. *the truth*: scores of a router that makes no mistakes. A
budget's percentage is of {all} tokens at any turn: 35 % are {budget} tokens. Levels are the library's;
`generate(level=...)` for the last two. Intervals: 95 %, from {resamples} draws of whole conversations, the same for
all settings.\
"""
LINES = {
    "all fine": ("#222222", "-"),
    "fade + router, 35%": ("#2471a3", "-"),
    "fade by age, 35%": ("#2471a3", "--"),
    "delete oldest, 35%": ("#c0392b", "-"),
    "all at 4 tokens": ("#7d8c2c", "--"),
}


def page(told: Mapping[str, Any], command: str) -> str:
    """The tables with what is needed to judge them."""
    runs = told["runs"]
    lines = [
        "# Answers about faded pictures",
        "",
        f"{datetime.date.today()}; {told['hardware']}, {told['threads']} thread(s); {report.versions(told)}; "
        f"`{command}`; {told['seconds'] / 60:.1f} minutes, seeds {', '.join(str(one['seed']) for one in runs)}.",
        "",
        PROTOCOL.format(
            questions=told["questions"], conversations=told["conversations"], walks=told["walks"], all=settings.ALL,
            fine=settings.FINE, chance=np.mean(list(CHANCE.values())), rows=PLANS["full"].router_rows,
            budget=int(settings.MAIN * settings.ALL), tolerance=routing.TOLERANCE,
            rank=routing.RANK, sure=routing.SURE, resamples=run.RESAMPLES,
        ),
    ]  # fmt: skip
    for one in runs:
        lines += ["", f"## Seed {one['seed']}", "", *rows(one["table"]), "", *by_turn(one["curves"])]
        lines += ["", *measured(one)]
    return "\n".join([*lines, ""])


def measured(one: Mapping[str, Any]) -> list[str]:
    """Seconds, sizes and what the router did, of one seed."""
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in one["seconds"].items())
    sizes = ", ".join(f"{name} {value:,}" for name, value in one["parameters"].items())
    raised = "; ".join(
        f"{name}: {each['asked about and finest']:.2f}, {each['raised']:.2f}" for name, each in one["seen"].items()
    )
    return [
        f"Seconds: {seconds}. Parameters: {sizes}.",
        "",
        "Of questions about digits, how often the picture asked about was at its finest level; and how many older "
        f"pictures `Fade` raised per prompt: {raised}.",
    ]


def rows(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One Markdown row per setting."""
    found = [
        f"| setting | visual tokens | share | right | 95 % | minus all fine | 95 % | {' | '.join(KINDS)} |",
        "|---|---|---|---|---|---|---|" + "---|" * len(KINDS),
    ]
    for name, one in table.items():
        (low, high), (below, above) = one["accuracy_ci95"], one["minus_all_fine_ci95"]
        kinds = " | ".join(f"{one['kinds'][kind]:.3f}" for kind in KINDS)
        found.append(
            f"| {name} | {one['tokens']:.1f} | {one['share']:.0%} | {one['accuracy']:.3f} | {low:.3f} to {high:.3f} | "
            f"{one['minus_all_fine']:+.3f} | {below:+.3f} to {above:+.3f} | {kinds} |"
        )
    return [*found, f"| chance | | | {np.mean(list(CHANCE.values())):.3f} | | | | "
            + " | ".join(f"{CHANCE[kind]:.3f}" for kind in KINDS) + " |"]  # fmt: skip


def by_turn(curves: Mapping[str, Sequence[float]]) -> list[str]:
    """Accuracy behind every picture, one Markdown row per setting."""
    numbers = range(1, len(NAMES) + 1)
    found = [f"| after picture | {' | '.join(map(str, numbers))} |", "|---|" + "---|" * len(NAMES)]
    return [*found, *(f"| {name} | {' | '.join(f'{one:.2f}' for one in turns)} |" for name, turns in curves.items())]


def drawn(told: Mapping[str, Any]) -> str:
    """Accuracy by turn, as SVG: means over seeds."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "conversation_answers", "font.size": 14}):
        figure = Figure(figsize=(7.2, 4.8), layout="constrained")
        axes = figure.subplots()
        for name, (colour, style) in LINES.items():
            turns = np.mean([one["curves"][name] for one in told["runs"]], axis=0)
            axes.plot(range(1, len(turns) + 1), turns, style, color=colour, marker=".", label=name)
        axes.set_xlabel("pictures so far")
        axes.set_ylabel("share of right answers")
        axes.set_ylim(0, 1.02)
        axes.set_xticks(range(1, len(NAMES) + 1))
        axes.grid(alpha=0.3)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return target.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversation_answers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of pictures, weights, training and exam")
    parser.add_argument("--plan", choices=sorted(PLANS), default="full", help="tiny: to see that it runs")
    parser.add_argument("--out", type=Path, help="write the page here, and its figures beside it")
    parser.add_argument("--svg", type=Path, help="write the picture here")
    options = parser.parse_args(argv)
    report.quiet()
    torch.set_num_threads(1)
    begun, plan = time.perf_counter(), PLANS[options.plan]

    def tell(line: str) -> None:
        sys.stderr.write(f"{time.perf_counter() - begun:6.0f} s  {line}\n")
        sys.stderr.flush()

    runs = [run.run(plan, seed, tell) for seed in options.seeds]
    told = {
        **report.surroundings("cpu"),
        **{"threads": torch.get_num_threads(), "seconds": time.perf_counter() - begun, "runs": runs},
        **{"questions": plan.conversations * plan.each, "conversations": plan.conversations, "walks": plan.walks},
    }
    command = f"python -m benchmarks.conversation_answers {' '.join(sys.argv[1:] if argv is None else argv)}".strip()
    written = page(told, command)
    report.keep(options.out, written, told)
    if options.svg:
        write_whole(options.svg, drawn(told))
    sys.stdout.write(written + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
