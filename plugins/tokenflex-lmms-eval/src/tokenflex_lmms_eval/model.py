"""``TokenFlex``: the class that lmms-eval calls."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.utils import simple_parse_args_string  # pyright: ignore[reportMissingImports]
from tqdm.auto import tqdm

from tokenflex.chat import prompt_tokens
from tokenflex.errors import ConfigError
from tokenflex_lmms_eval import options, order, processes, records, samples
from tokenflex_lmms_eval.answering import Answer, Answerer
from tokenflex_lmms_eval.loading import load
from tokenflex_lmms_eval.settings import Settings, joined


@dataclass
class VisualTokenCounts(TokenCounts):
    """lmms-eval's token counts with the images' part; see `Answer`."""

    levels: tuple[int, ...] = ()
    visual_tokens: int = 0
    finest_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What lmms-eval writes for each sample."""
        own = {"levels": list(self.levels), "visual_tokens": self.visual_tokens, "finest_tokens": self.finest_tokens}
        return {**super().to_dict(), **own}


class TokenFlex(lmms):
    """A host that sees as many visual tokens as each image and question need.

    Args:
        arguments: see `Settings`.

    Raises:
        ConfigError: an argument is unknown or contradicts another.
    """

    is_simple = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.settings = Settings.parse(arguments)
        self.accelerator = processes.accelerator_of_run()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.log = None
        if self.settings.log is not None:
            self.log = records.place(self.settings.log, self._rank, self._world_size)
        self.records: list[records.Record] = []
        device = processes.placement(self.settings.device, self.accelerator.device, self._world_size)
        self.flex, self.processor = load(self.settings, device)
        self.device = self.flex.device

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> "TokenFlex":
        """From ``--model_args`` and lmms-eval's own options.

        Raises:
            ConfigError: see `Settings.parse` and `joined`.
        """
        return cls(**joined(simple_parse_args_string(arg_string), additional_config or {}))

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Answers in the order of the requests.

        Raises:
            ConfigError: a task asks for something that can't be honoured.
            DataError: a document holds something other than text and images.
        """
        asked = [options.parse(request.args[2], self.settings.max_new_tokens) for request in requests]
        plan = order.batches([one.key for one in asked], self._lengths(requests), self.settings.batch_size)
        answerer = Answerer(self.flex, self.processor, self.settings.level, self.settings.budget)
        found: dict[int, Answer] = {}
        with tqdm(total=len(requests), desc="tokenflex", disable=self._rank != 0) as bar:
            for places in plan:
                batch = [self._sample(requests[place]) for place in places]
                found |= dict(zip(places, answerer(batch, asked[places[0]]), strict=True))
                bar.update(len(places))
        answers = [found[place] for place in range(len(requests))]
        self._record(requests, answers)
        return [_result(answer) for answer in answers]

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        """Not offered.

        Raises:
            ConfigError: always.
        """
        raise self._refused(requests, "asks for likelihoods")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> Any:
        """Not offered.

        Raises:
            ConfigError: always.
        """
        raise self._refused(requests, "goes over several rounds")

    def _lengths(self, requests: Sequence[Any]) -> list[int]:
        """About how many tokens each prompt has; nobody asks where every request is a batch of its own."""
        if self.settings.batch_size == 1:
            return [0] * len(requests)
        found: list[int] = []
        for request in requests:
            sizes = [(image.height, image.width) for image in self._sample(request).images]
            found.append(prompt_tokens(self.processor, request.args[0], sizes))
        return found

    def _sample(self, request: Any) -> samples.Sample:
        _, messages, _, doc_id, task, split = request.args
        return samples.read(messages(self.task_dict[task][split][doc_id]), f"task {task}, document {doc_id}")

    def _record(self, requests: Sequence[Any], answers: Sequence[Answer]) -> None:
        """Adds to the log what isn't there only to keep processes in step."""
        if self.log is None:
            return
        known = Counter((one.task, one.doc_id) for one in self.records)
        for request, answer in zip(requests, answers, strict=True):
            *_, doc_id, task, _ = request.args
            if (request.metadata or {}).get("__padding_only__"):
                continue
            self.records.append(records.record(task, doc_id, known[task, doc_id], answer))
            known[task, doc_id] += 1
        records.write(self.log, self.records)

    def _refused(self, requests: Sequence[Any], reason: str) -> ConfigError:
        tasks = sorted({str(request.task_name) for request in requests})
        return ConfigError(
            f"{', '.join(tasks)} {reason}, which the model tokenflex doesn't do: it answers in one go. Take a variant "
            "of the task with output_type generate_until."
        )


def _result(answer: Answer) -> GenerationResult:
    return GenerationResult(
        text=answer.ending.text,
        token_counts=VisualTokenCounts(
            input_tokens=answer.input_tokens,
            output_tokens=answer.ending.tokens,
            levels=answer.levels,
            visual_tokens=answer.visual_tokens,
            finest_tokens=answer.finest_tokens,
        ),
    )
