"""A profile as tables of text and as sentences, which the screen, Markdown and the page share."""

from collections import Counter
from dataclasses import dataclass

from tokenflex.profiling.result import BatchProfile, Profile, SettingProfile
from tokenflex.profiling.timing import Times

NONE = "-"
TITLES = {"vision_tower": "tower", "decision": "decision", "scaler": "scaler", "splice": "splice", "prefill": "prefill"}
LEGEND = (
    "Times in ms per batch, medians; where there are two, median / 95th percentile. The vanilla host's prefill has its "
    "vision tower inside (*). Escalation goes through all stages once per pass, so it is told as a whole; its tokens "
    "are those of all passes. Rest: time to first token less the stages. Visual tokens per image, mean. Peak memory: "
    "weights, batch and all that is live at once; working: without what is there before."
)


@dataclass(frozen=True)
class Rows:
    """A table as text; the first column names the setting."""

    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]


def protocol(profile: Profile) -> str:
    """Hardware, kernel, type, versions and number of runs, as a paragraph."""
    where = profile.surroundings
    parts, asked = ", ".join(where.parts.values()), f"Asked: {profile.request}. " if profile.request else ""
    parts_dtype = f" (parts {' and '.join(where.parts_dtype)})" if where.parts_dtype else ""
    return (
        f"{where.date}; {where.host} of {where.parameters / 1e6:.1f} M parameters with {parts}; {where.device_name} "
        f"({where.device}, {where.threads} threads); {' and '.join(where.dtype)}{parts_dtype}, attention "
        f"{' and '.join(where.attention)}; torch {where.torch}, transformers {where.transformers}, tokenflex "
        f"{where.tokenflex}, Python {where.python}. {asked}n = {profile.runs} runs per setting after "
        f"{profile.warm_up} for warming up; settings take turns. Every setting, the vanilla host too, runs the same "
        "weights, type, attention implementation, prompt and number of new tokens, greedily."
    )


def times(batch: BatchProfile) -> Rows:
    """The table of times of every setting, in milliseconds."""
    longer = [answer.new_tokens for answer in batch.settings[0].answers if answer.new_tokens > 1]
    ends = (*(["per token"] if longer else []), *(f"{length} tokens" for length in longer))
    head = ("setting", "visual tokens", *TITLES.values(), "rest", "first token", *ends)
    return Rows(head, tuple(_timed(setting) for setting in batch.settings))


def costs(batch: BatchProfile) -> Rows:
    """The table of visual tokens, memory in MiB and work in GFLOP of every setting."""
    lengths = [answer.new_tokens for answer in batch.settings[0].answers]
    work = [f"GFLOP, {answer_tokens(length)}" for length in lengths]
    longest = answer_tokens(lengths[-1])
    memory = (f"peak MiB, {longest}", "working MiB", f"KV cache MiB, {longest}")
    head = ("setting", "levels", "visual tokens", "prompt", *memory, "GFLOP, prefill", *work)
    body = []
    for setting in batch.settings:
        used = setting.answers[-1].memory
        mebibytes = (digits(one / 2**20) for one in (used.peak, used.working, used.cache))
        flops = (setting.prefill.flops, *(answer.work.flops for answer in setting.answers))
        giga = [digits(one / 1e9) for one in flops]
        if setting.kind in ("vanilla", "escalate"):
            giga[0] += "*"
        shown = (_levels(setting), f"{setting.tokens:.1f}", str(setting.prompt_length), *mebibytes, *giga)
        body.append((setting.name, *shown))
    return Rows(head, tuple(body))


def sentences(batch: BatchProfile) -> list[str]:
    """What the numbers say about routing, per answer length."""
    told = []
    for even in batch.break_even:
        told.append(f"{answer_tokens(even.new_tokens)} per answer: {even.in_words}")
        told += [f"{answer_tokens(one.new_tokens)} per answer, {one.in_words}" for one in batch.comparisons
                 if one.new_tokens == even.new_tokens]  # fmt: skip
    return told


def digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    if value == 0:
        return "0"
    shown = f"{value:.3g}"
    return shown if "e" not in shown else f"{float(shown):.0f}" if abs(value) >= 1 else f"{value:.6f}"


def _timed(setting: SettingProfile) -> tuple[str, ...]:
    stages = [digits(1e3 * setting.stages[name].median) if name in setting.stages else NONE for name in TITLES]
    if setting.kind == "vanilla":
        stages[-1] += "*"
    longer = [answer for answer in setting.answers if answer.per_token is not None]
    per_token = [digits(1e3 * longer[-1].per_token.median)] if longer and longer[-1].per_token else []
    ends = (*per_token, *(_both(answer.end_to_end) for answer in longer))
    rest = digits(1e3 * setting.rest)
    return (setting.name, f"{setting.tokens:.1f}", *stages, rest, _both(setting.first_token), *ends)


def _both(taken: Times) -> str:
    return f"{digits(1e3 * taken.median)} / {digits(1e3 * taken.p95)}"


def _levels(setting: SettingProfile) -> str:
    counts = sorted(Counter(setting.levels).items())
    if len(counts) == 1:
        return str(counts[0][0])
    return " ".join(f"{count}x{level}" for level, count in counts) or NONE


def answer_tokens(length: int) -> str:
    """A number of tokens in words, as in ``64 tokens``."""
    return f"{length} token{'s' * (length > 1)}"


def title(batch: BatchProfile) -> str:
    """What the batch was, in words: its requests, images and length."""
    images = f"{batch.images} image{'s' * (batch.images > 1)}"
    return f"Batch of {batch.rows} ({images}), prompts of {batch.prompt_length} tokens"
