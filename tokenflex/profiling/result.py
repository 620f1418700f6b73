"""What a profile holds; everything turns into JSON-ready data."""

from dataclasses import dataclass
from typing import Any

from tokenflex.profiling.break_even import BreakEven, Comparison
from tokenflex.profiling.flops import Work
from tokenflex.profiling.memory import Memory
from tokenflex.profiling.plan import Kind
from tokenflex.profiling.surroundings import Surroundings
from tokenflex.profiling.timing import Times

FORMAT = 1


@dataclass(frozen=True)
class AnswerProfile:
    """What answers of one length take, in one setting on one batch.

    Attributes:
        new_tokens: length of every answer, in tokens.
        end_to_end: one call of ``generate``.
        per_token: what a further token takes: the end to end of a run less the time to first token of the same round,
            over the further tokens; None where there are none.
        memory, work: of one such call, which isn't timed.
    """

    new_tokens: int
    end_to_end: Times
    per_token: Times | None
    memory: Memory
    work: Work

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready data; times are seconds, and memory is bytes."""
        return {
            "new_tokens": self.new_tokens,
            "end_to_end": self.end_to_end.to_dict(),
            "per_token": self.per_token.to_dict() if self.per_token else None,
            "memory": self.memory.to_dict(),
            "work": self.work.to_dict(),
        }


@dataclass(frozen=True)
class SettingProfile:
    """One setting on one batch.

    Attributes:
        levels: chosen or forced, one per image; none for the vanilla host.
        tokens: visual tokens per image that the language model sees, in all passes, mean.
        prompt_length: length of the batch that the language model sees, padding included.
        stages: those that the setting has (see `tokenflex.profiling.stages.STAGES`).
        prefill: the work of that stage; of escalation, which has none, that of an answer of one token.
        first_token: one call of ``generate`` for one token.
        answers: by length, ascending.
    """

    name: str
    kind: Kind
    levels: tuple[int, ...]
    tokens: float
    prompt_length: int
    stages: dict[str, Times]
    prefill: Work
    first_token: Times
    answers: tuple[AnswerProfile, ...]

    @property
    def rest(self) -> float:
        """Median time to first token less the medians of the stages: reading words, counting, ``generate`` itself."""
        return self.first_token.median - sum(times.median for times in self.stages.values())

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready data; times are seconds."""
        return {
            "name": self.name,
            "kind": self.kind,
            "levels": list(self.levels),
            "tokens": self.tokens,
            "prompt_length": self.prompt_length,
            "stages": {name: times.to_dict() for name, times in self.stages.items()},
            "rest": round(self.rest, 9),
            "prefill": self.prefill.to_dict(),
            "time_to_first_token": self.first_token.to_dict(),
            "answers": [answer.to_dict() for answer in self.answers],
        }


@dataclass(frozen=True)
class BatchProfile:
    """Every setting on one batch.

    Attributes:
        rows: requests in the batch.
        images: in all of them.
        prompt_length: as the processor made it, placeholders and padding included.
        settings: the vanilla host first.
        break_even: one per answer length.
        comparisons: routed and escalating settings beside the vanilla host, one per answer length.
    """

    rows: int
    images: int
    prompt_length: int
    settings: tuple[SettingProfile, ...]
    break_even: tuple[BreakEven, ...]
    comparisons: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready data; times are seconds."""
        return {
            "rows": self.rows,
            "images": self.images,
            "prompt_length": self.prompt_length,
            "settings": [setting.to_dict() for setting in self.settings],
            "break_even": [one.to_dict() for one in self.break_even],
            "comparisons": [one.to_dict() for one in self.comparisons],
        }


@dataclass(frozen=True)
class Profile:
    """What `tokenflex.profiling.profile` found.

    Attributes:
        request: what was asked, in words.
        runs, warm_up: timed rounds, and those before.
        batches: in the order given.
        warnings: sentences that the reader must know.
        command: as it was typed; empty where it was measured from Python.
    """

    surroundings: Surroundings
    request: str
    runs: int
    warm_up: int
    batches: tuple[BatchProfile, ...]
    warnings: tuple[str, ...]
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready data; times are seconds."""
        return {
            "format": FORMAT,
            "surroundings": self.surroundings.to_dict(),
            "command": self.command,
            "request": self.request,
            "runs": self.runs,
            "warm_up": self.warm_up,
            "batches": [batch.to_dict() for batch in self.batches],
            "warnings": list(self.warnings),
        }
