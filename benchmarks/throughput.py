"""How many images a second, by batch, answer and mix of levels, and how much of what FLOPs allow that is.

    python -m benchmarks.throughput --size small             # about ten minutes on two CPU cores
    python -m benchmarks.throughput --size small --json      # the same rows as one JSON object
    python -m benchmarks.throughput --size 7b --out benchmarks/results/throughput_7b.md

Rows appear on standard error as they are known. Shares of tokens: AVG-LLaVA (arXiv 2410.02745) on three benchmarks.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import paper_speed, report, sizes
from benchmarks.measure import Flops
from tokenflex.errors import ConfigError
from tokenflex.files import write_whole
from tokenflex.model import FlexModel
from tokenflex.profiling.mix import MIXES, GivenLevels, levels_for, read_mix
from tokenflex.profiling.timing import clock_for, interleaved

SETTINGS = ("finest", "coarsest", "routed", "padded")
"""What is measured besides the plain host."""


@dataclass(frozen=True)
class Scale:
    """A model, and what is measured of it unless something else is asked for.

    Attributes:
        rounds: by batch; for batches that aren't named those of the next smaller.
        cut: what was made smaller to keep the run short, in words.
    """

    size: sizes.Size
    batches: tuple[int, ...] = (1, 8, 32)
    answers: tuple[int, ...] = (1, 16, 64)
    rounds: Mapping[int, int] = field(default_factory=lambda: {1: 7, 2: 4, 9: 3})
    cut: str = "Nothing was cut."

    def times(self, batch: int) -> int:
        """Rounds for a batch."""
        return self.rounds[max(least for least in self.rounds if least <= batch)]


SCALES = {
    "tiny": Scale(paper_speed.SIZES["tiny"], (1, 4), (1, 2), {1: 1}),
    "small": Scale(
        replace(
            sizes.SMALL,
            vision={**sizes.SMALL.vision, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 5,
                    "num_attention_heads": 4},
            text={"vocab_size": 2100, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 14,
                  "num_attention_heads": 4, "num_key_value_heads": 4},
            image=(168, 336), words=56,
        ),
        cut="So that a run takes minutes the language model is narrow and has 14 layers and a small vocabulary, a "
        "image has two tiles, and larger batches have fewer rounds.",
    ),
    "7b": Scale(paper_speed.SIZES["7b"], (1, 8), rounds={1: 10}, cut="A batch of 32 needs about 80 GB: --batches 32."),
}  # fmt: skip
"""``small`` has at the coarsest level the shares of the 7B model, by FLOPs: vision tower and router to the whole."""
PROTOCOL = """\
{model}; {tokens} visual tokens at the levels.
Requests of one image of {image[0]} x {image[1]} pixels and {words} text tokens each, greedy, the end token never
written; {dtype}, attention {attention}. A request runs vision tower, router, splice, prefill and decode; random weights
would choose at random, so the router is run in full and its choice is then replaced by given levels. A mix keeps the
share of visual tokens that AVG-LLaVA keeps on a benchmark ({mixes}), by
the two levels next to it: in a batch its images differ, as many of each level as come nearest to the share; at batch
1 requests come one after another, so the mix's time is the weighted mean of its levels' times. `kept` is what a row
came to. `routed` lets the model group a batch's rows (`batching="auto"`), `routed, padded` pads them to the longest.
The host runs twice in every round, once to be compared with and once as `plain host`, whose ratio is 1 but for noise.
Settings take turns, each round begins with another and every second goes backwards; before the first batch all run
untimed, before every further one the host. A round's ratio is the setting's images a second by the host's; figures are
medians over n rounds, spreads their least and greatest. The FLOP limit is the host's FLOPs on all tokens by those of
vision tower, scaler, router and language model on exactly the tokens kept, each image for itself, without padding,
decoding included; forced levels run no router. `of the limit` is the ratio by it. For one token at the coarsest
level the vision tower is {tower:.0f} % of a request's FLOPs, and the router adds {router:.0f} %. {cut}\
"""


@dataclass(frozen=True)
class Run:
    """One call that is timed.

    Attributes:
        kind: ``host``; ``plain host``, the same again; ``forced``, without the router; ``routed``; or ``padded``.
        levels: one per image.
    """

    kind: str
    levels: tuple[int, ...] = ()


HOST, AGAIN = Run("host"), Run("plain host")


@dataclass(frozen=True)
class Case:
    """What a row is about.

    Attributes:
        runs: whose times' mean by these weights is the row's.
    """

    setting: str
    mix: str | None
    runs: Mapping[Run, float]

    def mean(self, of: Callable[[Run, int], float], finest: int) -> float:
        """The mean over images of what a run has at a level."""
        each = {run: [of(run, level) for level in run.levels or (finest,)] for run in self.runs}
        return sum(weight * statistics.fmean(each[run]) for run, weight in self.runs.items())


@dataclass(frozen=True)
class Row:
    """One setting at one batch, answer and mix.

    Attributes:
        kept: share of the visual tokens.
        ratio, spread: images a second by the host's: median, least and greatest of the rounds.
        flop_limit: the ratio at which time would shrink as FLOPs do.
        of_limit: share of it that is reached.
    """

    batch: int
    answer: int
    mix: str | None
    setting: str
    kept: float
    images_per_second: float
    ratio: float
    spread: tuple[float, float]
    n: int
    flop_limit: float
    of_limit: float


def cases(batch: int, mixes: Mapping[str, float], shares: Sequence[float], settings: Sequence[str]) -> list[Case]:
    """What is measured at a batch.

    Args:
        shares: of tokens, by level, the last one 1.
    """
    found = [Case("plain host", None, {AGAIN: 1.0})]
    for name, level in (("finest", len(shares) - 1), ("coarsest", 0)):
        if name in settings:
            found.append(Case(f"forced {name}", None, {Run("forced", (level,) * batch): 1.0}))
    for name, share in mixes.items():
        given = {levels_for(share, shares, batch): 1.0}
        if batch == 1:
            given = {(level,): weight for level, weight in paper_speed.mix(share, shares).items() if weight > 0}
        differ = any(len(set(levels)) > 1 for levels in given)
        for kind, setting in (("routed", "routed"), ("padded", "routed, padded")):
            if kind in settings and (kind == "routed" or differ):
                found.append(Case(setting, name, {Run(kind, levels): weight for levels, weight in given.items()}))
    return found


def call(flex: FlexModel, inputs: Mapping[str, Any], answer: int, run: Run) -> Callable[[], Any]:
    """A run as a call that answers the whole batch."""
    asked = {**inputs, "max_new_tokens": answer, "min_new_tokens": answer, "do_sample": False}
    if run in (HOST, AGAIN):
        return partial(flex.host.generate, **asked)
    if run.kind == "forced":
        return partial(flex.generate, **asked, level=list(run.levels))
    routed = partial(flex.generate, **asked, budget=GivenLevels.Config(levels=run.levels))
    return partial(_padded, flex, routed) if run.kind == "padded" else routed


def _padded(flex: Any, run: Callable[[], Any]) -> Any:
    was, flex.batching = flex.batching, "padded"
    try:
        return run()
    finally:
        flex.batching = was


def requests(size: sizes.Size, seed: int, rows: int) -> dict[str, Any]:
    """A batch of requests that are equally long, so that the host pads nothing either."""
    processor = sizes.collator(size).processor
    data = sizes.dataset(replace(size, answers=2), seed, rows)
    samples = [data[i] for i in range(rows)]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": sample.messages[0]["content"]}], tokenize=False, add_generation_prompt=True
        )
        for sample in samples
    ]
    made = processor(images=[list(sample.images) for sample in samples], text=texts, return_tensors="pt", padding=True)
    assert bool(made["attention_mask"].all()), "the tokenizer writes every word as one token"
    return {k: v.to(size.device, size.dtype) if v.is_floating_point() else v.to(size.device) for k, v in made.items()}


class Work:
    """FLOPs of answering one request, each counted once; ``padded`` has those of ``routed``, as if nothing were padded.

    Args:
        alone: the request.
    """

    def __init__(self, flex: FlexModel, alone: Mapping[str, Any]) -> None:
        self._flex, self._alone = flex, alone
        self._found: dict[tuple[int, Run], int] = {}

    def __call__(self, answer: int, kind: str, level: int) -> int:
        """Of a kind of `Run`, at a level."""
        kind = {AGAIN.kind: HOST.kind, "padded": "routed"}.get(kind, kind)
        run = HOST if kind == HOST.kind else Run(kind, (level,))
        if (answer, run) not in self._found:
            counter = Flops()
            counter(call(self._flex, self._alone, answer, run))
            self._found[answer, run] = counter.counts[0]
        return self._found[answer, run]


def row(
    case: Case,
    batch: int,
    answer: int,
    shares: Sequence[float],
    seconds: Mapping[Run, Sequence[float]],
    flops: Callable[[str, int], int],
) -> Row:
    """A row from what was measured.

    Args:
        seconds: of every run, round by round.
        flops: of a kind of run at a level, see `Work`.
    """
    finest, host = len(shares) - 1, seconds[HOST]
    ours = [sum(weight * seconds[run][turn] for run, weight in case.runs.items()) for turn in range(len(host))]
    ratios = [theirs / own for theirs, own in zip(host, ours, strict=True)]
    ratio = statistics.median(ratios)
    limit = flops(HOST.kind, finest) / case.mean(lambda run, level: flops(run.kind, level), finest)
    return Row(
        batch=batch,
        answer=answer,
        mix=case.mix,
        setting=case.setting,
        kept=case.mean(lambda _, level: shares[level], finest),
        images_per_second=batch / statistics.median(ours),
        ratio=ratio,
        spread=(min(ratios), max(ratios)),
        n=len(ratios),
        flop_limit=limit,
        of_limit=ratio / limit,
    )


def rows(
    flex: FlexModel, scale: Scale, options: argparse.Namespace, mixes: Mapping[str, float], alone: Mapping[str, Any]
) -> Iterator[Row]:
    """Every row as soon as it is known.

    Args:
        options: of the command line.
        alone: one request.
    """
    with torch.no_grad():
        counts: list[int] = flex.encode(alone).counts[0].tolist()
    shares, work = [count / counts[-1] for count in counts], Work(flex, alone)
    for place, batch in enumerate(options.batches):
        inputs = requests(scale.size, options.seed, batch)
        asked = cases(batch, mixes, shares, options.settings)
        runs = list(dict.fromkeys([HOST, *(run for case in asked for run in case.runs)]))
        rounds = options.rounds[min(place, len(options.rounds) - 1)] if options.rounds else scale.times(batch)
        for run in runs if place == 0 else [HOST]:
            call(flex, inputs, min(options.answers), run)()
        for answer in options.answers:
            calls = {str(run): {"answer": call(flex, inputs, answer, run)} for run in runs}
            taken = interleaved(calls, rounds, 0, clock_for(flex.device))
            seconds = {run: taken[str(run)]["answer"].seconds for run in runs}
            for case in asked:
                yield row(case, batch, answer, shares, seconds, partial(work, answer))


def measured(scale: Scale, options: argparse.Namespace, mixes: Mapping[str, float]) -> dict[str, Any]:
    """Everything: rows, protocol, surroundings."""
    start, size = time.perf_counter(), scale.size
    models, _ = paper_speed.built(size, options.seed)
    flex, alone, counter = models["routed"], requests(size, options.seed, 1), Flops()
    with torch.no_grad():
        encoded = counter(lambda: flex.encode(alone))
        counter(lambda: flex.scores(encoded))
    counter(call(flex, alone, 1, HOST))
    counter(call(flex, alone, 1, Run("forced", (0,))))
    tower, router, host, coarsest = counter.counts
    tokens = encoded.counts[0].tolist()
    found = []
    for one in rows(flex, scale, options, mixes, alone):
        sys.stderr.write(_line(one) + "\n")
        found.append(asdict(one))
    return {
        "rows": found,
        "tokens": tokens,
        "flops_of_one_token": {"host": host, "coarsest": coarsest, "tower": tower, "router": router},
        "threads": torch.get_num_threads(),
        "minutes": (time.perf_counter() - start) / 60,
        "protocol": PROTOCOL.format(
            model=sizes.describe(size, flex, alone).split("; a batch")[0],
            tokens=", ".join(map(str, tokens)),
            image=size.image,
            words=size.words,
            dtype=str(size.dtype).removeprefix("torch."),
            attention=flex.host.config._attn_implementation,
            mixes=", ".join(f"{name} {100 * share:.1f} %" for name, share in mixes.items()),
            tower=100 * tower / coarsest,
            router=100 * router / coarsest,
            cut=scale.cut,
        ),
        **report.surroundings(size.device),
    }


def _line(one: Row) -> str:
    low, high = one.spread
    return (
        f"batch {one.batch}, answer {one.answer}, {one.mix or '-'}, {one.setting}: {one.ratio:.2f}x "
        f"({low:.2f}-{high:.2f}, n = {one.n}), {100 * one.of_limit:.0f} % of {one.flop_limit:.2f}x"
    )


def table(found: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "| batch | answer | mix | setting | kept | images/s | ratio | spread | n | FLOP limit | of the limit |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found["rows"]:
        low, high = one["spread"]
        what = (
            f"| {one['batch']} | {one['answer']} | {one['mix'] or '-'} | {one['setting']} | {100 * one['kept']:.1f} % |"
        )
        lines.append(
            f"{what} {one['images_per_second']:.3g} | {one['ratio']:.2f}x | {low:.2f}-{high:.2f} | {one['n']} | "
            f"{one['flop_limit']:.2f}x | {100 * one['of_limit']:.0f} % |"
        )
    return "\n".join(lines) + "\n"


def page(found: Mapping[str, Any], command: str) -> str:
    """The table with what is needed to judge it."""
    about = (
        f"{datetime.date.today()}; {found['hardware']}, {found['threads']} threads; "
        f"{report.versions(found)}; `{command}`; {found['minutes']:.0f} minutes."
    )
    return "\n\n".join(["# Images a second, and what FLOPs allow", about, found["protocol"], table(found)])


def main(argv: list[str] | None = None) -> None:
    """Measure, and write to standard output and ``--out``."""
    argv = sys.argv[1:] if argv is None else argv
    options = _options(argv)
    scale = SCALES[options.size]
    if scale.size.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"--size {options.size} needs a CUDA device with about 40 GB, and torch sees none; use --size small.")
    options.batches, options.answers = options.batches or scale.batches, options.answers or scale.answers
    if min(*options.batches, *options.answers, *(options.rounds or (1,)), 1) < 1:
        sys.exit("--batches, --answers and --rounds are 1 or more.")
    try:
        mixes = {name: read_mix(name) for name in options.mixes}
    except ConfigError as error:
        sys.exit(f"--mixes: {error}")
    torch.set_num_threads(options.threads)
    report.quiet()
    found = measured(scale, options, mixes)
    if options.out:
        write_whole(options.out, page(found, " ".join(["python -m benchmarks.throughput", *argv])))
    sys.stdout.write(json.dumps(found) + "\n" if options.json else table(found))


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SCALES, default="small", help="tiny only shows that it runs")
    parser.add_argument("--json", action="store_true", help="write one JSON object and nothing else")
    parser.add_argument("--out", type=Path, help="Markdown file to write as well")
    parser.add_argument("--batches", type=int, nargs="+", help="images per batch; by default the size's own (1 8 32)")
    parser.add_argument("--answers", type=int, nargs="+", help="new tokens; by default the size's own (1 16 64)")
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), metavar="SHARE", help="names or shares of tokens")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS, help="besides the plain host")
    parser.add_argument("--rounds", type=int, nargs="+", help="per batch, the last for all that follow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of the CPU")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
