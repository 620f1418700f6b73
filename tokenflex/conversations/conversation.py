"""``Conversation``: asks turn by turn, and reads again only what changed."""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tokenflex.contracts import Decision, Policy
from tokenflex.contracts.levels import spread
from tokenflex.contracts.numbers import integer
from tokenflex.conversations import turns
from tokenflex.conversations.history import History, Prompt, bytes_of
from tokenflex.conversations.kept_cache import KeptCache, signature
from tokenflex.conversations.reply import HeldMemory, Reply
from tokenflex.errors import ConfigError, InputError, UnsupportedHostError
from tokenflex.hosts import continuing, stock
from tokenflex.hosts.architectures import looks_ahead
from tokenflex.hosts.grouped import Options
from tokenflex.model import callbacks, door, generation, request
from tokenflex.model.encoding import Encoded
from tokenflex.model.request import Budgets, Level

if TYPE_CHECKING:
    from tokenflex.model.flex import FlexModel
else:
    FlexModel = Any

ROUTING = ("reroute", "first_turn", "max_over_turns")


class Conversation:
    """A conversation about images, which are encoded once and may become coarser or finer from turn to turn.

    Between turns it holds the images' features, the language model's cache, and what that was filled with. A turn reads
    the prompt from the first image on whose level changed; up to there, keys and values of earlier turns are used.

    Args:
        flex: the model. Its ``generate`` isn't changed by a conversation, and several may go on over one model.
        processor: of the host, with a chat template; None where all turns come by `go_on`.
        system: a message that the conversation begins with.
        budget: of all turns, as for `FlexModel.prepare`; ``Fade(tokens=...)`` shares its tokens out among all images.
        routing: whether an image's level may change when another question is asked: ``reroute``, whatever the router
            says now; ``first_turn``, never; ``max_over_turns``, to a finer one only.
        cache: an empty cache to fill, such as a ``StaticCache`` that is long enough; None: the host makes its own.
        memory: bytes that cache and features may take. Where they take more, the cache is given up after the turn and
            all is read again in the next one; features alone that don't fit are refused.
        offload: keep features on the CPU between turns.

    Raises:
        ConfigError: a setting isn't known, or a budget that is shared is to be bound to earlier levels.
        UnsupportedHostError: the host's turns can't be read one by one.
    """

    def __init__(
        self,
        flex: FlexModel,
        processor: Any = None,
        *,
        system: str | None = None,
        budget: Budgets = None,
        routing: str = "reroute",
        cache: Any = None,
        memory: int | None = None,
        offload: bool = False,
    ) -> None:
        if routing not in ROUTING:
            raise ConfigError(f"routing={routing!r:.200}; use one of {', '.join(map(repr, ROUTING))}.")
        if memory is not None and (integer(memory) or 0) < 1:
            raise ConfigError(f"memory={memory!r:.200}; give a number of bytes, 1 or more, or None.")
        if flex.adapter.append_refusal is not None:
            raise UnsupportedHostError(
                f"a conversation with {flex.adapter.model_type!r} can't be held turn by turn: "
                f"{flex.adapter.append_refusal}. Give the whole conversation to generate() in every turn."
            )
        self.flex, self.processor, self.budget, self.routing = flex, processor, budget, routing
        self.memory = memory
        self._policy(None, budget)
        self.messages: list[Mapping[str, Any]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
        self.decisions: tuple[Decision, ...] = ()
        self._history, self._cache = History(flex, offload), KeptCache(cache)
        self._answer = torch.zeros(0, dtype=torch.long)
        self._looks_ahead = looks_ahead(stock.base_of(flex.host).config) is not None

    def __repr__(self) -> str:
        return f"Conversation({len(self.messages)} messages, {len(self.decisions)} images, {self.held})"

    @property
    def held(self) -> HeldMemory:
        """What is held now."""
        return HeldMemory(self._cache.bytes, bytes_of(self._history.turns))

    def ask(
        self,
        text: str | Sequence[Mapping[str, Any]],
        images: Sequence[Any] = (),
        *,
        videos: Sequence[Any] = (),
        level: Level = None,
        budget: Budgets = None,
        **options: Any,
    ) -> Reply:
        """Say something, and get an answer.

        Whatever is raised, the conversation is what it was before the call.

        Args:
            text: the user's next message, behind the images; or content items, which say where these stand.
            images, videos: new ones, as the processor takes them.
            level: of all images of the conversation, or one per image, oldest first; None lets the router decide.
            budget: of this turn, instead of the conversation's.
            options: of ``generate``: one answer, so neither beams nor several sequences.

        Raises:
            InputError: the content isn't one, level or budget can't be honoured, the images' features take more than
                ``memory``, or an option asks for several answers.
            DataError: the chat template or the processor refuses the turn.
        """
        if self.processor is None:
            raise InputError("text needs a processor: Conversation(flex, processor), or give tokens to go_on().")
        content = turns.content_of(text, len(images), len(videos))
        reply = self.go_on(self._turn(content, images, videos), level=level, budget=budget, **options)
        said = {"role": "assistant", "content": [{"type": "text", "text": reply.text}]}
        self.messages = [*self.messages, {"role": "user", "content": content}, said]
        return reply

    @torch.no_grad()
    def go_on(self, inputs: Mapping[str, Any], *, level: Level = None, budget: Budgets = None, **options: Any) -> Reply:
        """As `ask`, with a turn that is tokens already, for templates or processors of one's own.

        Args:
            inputs: one row without padding: what stands behind the last answer, up to where the reply begins, with the
                new images only, as the processor made them.
            level, budget, options: as for `ask`.

        Raises:
            InputError: as `ask`, or images and placeholders don't match.
        """
        flex = self.flex
        budget = self.budget if budget is None and level is None else budget
        request.check(flex, options, level, budget)
        levels, policy = self._policy(level, budget)
        self._require_one_answer(options)
        inputs = {name: one.to(flex.device) if isinstance(one, torch.Tensor) else one for name, one in inputs.items()}
        door.check(inputs, flex.adapter)
        told = [*self._told(), self._history.encoded(inputs)]
        here = self._history.at_hand(told)
        decisions = self._decided(here, levels, policy)
        self._require_room(told)
        prompt = self._history.prompt(here, [decision.level for decision in decisions])
        try:
            reply = self._answered(told, prompt, decisions, options)
        except BaseException:
            self._cache.clear()
            raise
        self._history.turns, self.decisions, self._answer = told, decisions, reply.ids
        return reply

    def _turn(self, content: Sequence[Mapping[str, Any]], images: Sequence[Any], videos: Sequence[Any]) -> Any:
        """The user's next message as the processor makes it."""
        if self._history.turns:
            text, options = turns.next_turn(self.processor, self.messages[:-1], content), {"add_special_tokens": False}
        else:
            message = {"role": "user", "content": content}
            text, options = turns.first_turn(self.processor, [*self.messages, message])
        made = turns.processed(self.processor, text, images, videos, options)
        return turns.behind(self._answer, made) if self._history.turns else made

    def _told(self) -> list[Encoded]:
        """The turns so far, the last answer with them."""
        if not len(self._answer):
            return list(self._history.turns)
        return [*self._history.turns, self._history.said(turns.spoken(self._answer.to(self.flex.device)))]

    def _policy(self, level: Level, budget: Budgets) -> tuple[int | tuple[int, ...] | None, Policy | None]:
        levels, policy = request.read(level, budget, self.flex.compressor.num_levels)
        if policy is not None and policy.couples and self.routing != "reroute":
            raise ConfigError(
                f"routing={self.routing!r} keeps levels of earlier turns, and {type(policy).__name__} shares its "
                "tokens out among all images anew. Use routing='reroute' with it."
            )
        return levels, policy

    def _decided(
        self, here: Sequence[Encoded], levels: int | tuple[int, ...] | None, policy: Policy | None
    ) -> tuple[Decision, ...]:
        """One decision per image of the conversation."""
        count, before = sum(len(turn.counts) for turn in here), [decision.level for decision in self.decisions]
        if not count:
            if levels is not None:
                spread(levels, 0)
            return ()
        found = self._history.decided(here, levels, policy)
        if levels is not None or self.routing == "reroute" or not before:
            return found
        now = [decision.level for decision in found]
        if self.routing == "first_turn":
            bound = [*before, *now[len(before) :]]
        else:
            bound = [max(pair) for pair in zip(before, now, strict=False)] + now[len(before) :]
        kept = self._history.decided(here, tuple(bound), None)
        return tuple(one if one.level == level else k for one, level, k in zip(found, bound, kept, strict=True))

    def _answered(
        self, told: Sequence[Encoded], prompt: Prompt, decisions: Sequence[Decision], options: Mapping[str, Any]
    ) -> Reply:
        flex, inputs = self.flex, prompt.spliced.inputs
        levels = [decision.level for decision in decisions]
        known = signature(prompt.spliced, prompt.order, prompt.tokens, levels, flex.compressor.num_levels)
        if self._looks_ahead:
            self._cache.clear()
        reused = self._cache.begin(known)
        given = prompt.behind(flex, reused)
        if self._cache.cache is not None:
            given |= {name_of_cache(flex.host): self._cache.cache}
        ids = inputs["input_ids"]
        output = flex.host.generate(**given, **self._asked(options, prompt))
        answer = output.sequences[0, ids.shape[1] :]
        self._cache.keep(continuing.cache_of(output), [*known, *answer.tolist()])
        memory = HeldMemory(self._cache.bytes, bytes_of(told))
        if self.memory is not None and memory.total > self.memory:
            self._cache.clear()
            memory = HeldMemory(self._cache.bytes, memory.features, dropped=True)
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        text = "" if tokenizer is None else tokenizer.decode(answer, skip_special_tokens=True).strip()
        return Reply(text, answer.cpu(), tuple(decisions), ids.shape[1] - reused, reused, memory)

    def _asked(self, options: Mapping[str, Any], prompt: Prompt) -> dict[str, Any]:
        """Options of the host's ``generate``; placeholders are never said, since nothing could be gone on from them."""
        flex, own = self.flex, getattr(self.flex.host, "generation_config", None)
        ids = prompt.spliced.inputs["input_ids"]
        said = Options(flex.host, options)("suppress_tokens")
        asked = {**options, "suppress_tokens": sorted({*(said or ()), *flex.adapter.placeholder_ids}) or None}
        if own is not None and flex.generation_config != own:
            asked = generation.with_config(asked, flex.generation_config)
        asked = generation.lengths(asked, own, prompt.length - ids.shape[1])
        asked = callbacks.in_the_callers_prompt(asked, ids, ids, own)
        return {**asked, "return_dict_in_generate": True, "use_cache": True}

    def _require_room(self, told: Sequence[Encoded]) -> None:
        taken = bytes_of(told)
        if self.memory is not None and taken > self.memory:
            raise InputError(
                f"the features of {sum(len(turn.counts) for turn in told)} images take {taken} bytes, more than "
                f"memory={self.memory}. Allow more, begin another conversation, or use offload=True with a limit for "
                "the device's memory in mind."
            )

    def _require_one_answer(self, options: Mapping[str, Any]) -> None:
        copies = Options(self.flex.host, options).copies
        if copies > 1:
            raise InputError(f"{copies} answers to one question can't all be gone on from; ask for one.")


def name_of_cache(host: Any) -> str:
    """The name that a cache has among the inputs of a host's ``forward``."""
    parameters = inspect.signature(stock.base_of(host).forward).parameters
    return next((name for name in continuing.CACHES if name in parameters), continuing.CACHES[-1])
