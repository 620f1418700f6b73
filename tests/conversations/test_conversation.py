"""A conversation gives what the whole of it gives at once, and reads only what changed."""

import copy

import pytest
import torch
from transformers import StaticCache

import tokenflex
from tests.conversations.common import ANSWER, LATER, ROWS, cold, internvl, opened, options, picture, turn, turns
from tokenflex.conversations import Conversation
from tokenflex.errors import ConfigError, DataError, InputError, UnsupportedHostError
from tokenflex.tables import hosts as hosts_table
from tokenflex.testing.zoo.recipe import A_VIDEO, AN_IMAGE

OFTEN = (
    "llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "mistral3", "lfm2_vl",
    "gemma3", "paligemma", "granite4_vision",
)  # fmt: skip
SERVED = [n for n in hosts_table.architectures() if hosts_table.refusal(n) is None and n != "llava_onevision"]


def held(conversation):
    """Every turn: (reply, whether the answer is that of a cold run)."""
    tiny, flex = conversation.tiny, conversation.flex
    for inputs, later in zip(turns(tiny, flex), LATER, strict=True):
        count = sum(len(one.counts) for one in conversation._told()) + len(flex.encode(inputs).counts)
        reply = conversation.go_on(inputs, level=[1, *[later] * (count - 1)] if count else None, **options(flex))
        yield reply, torch.equal(cold(conversation), reply.ids)


def begun(name, **settings):
    tiny, flex = opened(name)
    if settings.pop("static", False):
        settings["cache"] = StaticCache(flex.host.config, max_cache_len=512)
    conversation = Conversation(flex, **settings)
    conversation.tiny = tiny  # pyright: ignore[reportAttributeAccessIssue]
    return conversation


@pytest.mark.parametrize("name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in SERVED])
def test_a_conversation_says_what_a_cold_run_says(name):
    conversation = begun(name)
    replies = list(held(conversation))
    assert all(same for _, same in replies)
    reused = [reply.reused for reply, _ in replies]
    assert reused[0] == 0
    if conversation._looks_ahead:
        assert reused == [0] * len(ROWS)
        return
    prompts = [reply.reused + reply.read for reply, _ in replies]
    for number in (1, 2, 3, 5):  # turns in which no level changed: all but the last word of the answer was read
        assert reused[number] == prompts[number - 1] + ANSWER["max_new_tokens"] - 1
    cuts = all(type(layer).__name__ == "DynamicLayer" for layer in conversation._cache.cache.layers)
    assert (reused[4] > 0) == cuts, "only the first image kept its level"


def test_images_that_would_lie_otherwise_are_refused():
    with pytest.raises(UnsupportedHostError, match="an image is laid out otherwise alone than in the company of"):
        begun("llava_onevision")


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "mistral3"])
def test_static_caches(name):
    dynamic, static = list(held(begun(name))), list(held(begun(name, static=True)))
    assert all(same for _, same in static)
    assert [reply.reused for reply, _ in static] == [reply.reused for reply, _ in dynamic]


def test_the_tower_runs_once_per_image(monkeypatch):
    conversation = begun("qwen2_5_vl")
    seen, encode = [], type(conversation.flex.adapter).encode
    monkeypatch.setattr(
        type(conversation.flex.adapter), "encode",
        lambda self, batch, attention=False: seen.extend(batch.items) or encode(self, batch, attention),
    )  # fmt: skip
    for inputs in turns(conversation.tiny, conversation.flex):
        conversation.go_on(inputs, **options(conversation.flex))
    assert len(seen) == 4


def test_levels_that_are_sizes_encode_what_is_wanted():
    tiny, flex = opened("qwen2_5_vl", router="constant", scaler="resolution")
    conversation = Conversation(flex)
    for inputs, level in zip(turns(tiny, flex), (0, 1, 0, 1, 1, 0), strict=True):
        reply = conversation.go_on(inputs, level=level if len(conversation.decisions) or AN_IMAGE else None,
                                   **options(flex))  # fmt: skip
        assert torch.equal(cold(conversation), reply.ids)


def test_words_and_images():
    flex, processor = internvl()
    conversation = Conversation(flex, processor, system="w9")
    first = conversation.ask("w1 w2", [picture(0)], level=1, **ANSWER)
    text = processor.tokenizer.decode(conversation._history.turns[0].batch.cpu["input_ids"][0])
    assert text.startswith("<unk> : w9 user")
    assert text.endswith("w1 w2 assistant :")
    conversation.ask("w3", level=1, **ANSWER)
    last = conversation.ask([{"type": "text", "text": "w4"}, {"type": "image"}], [picture(1)], level=1, **ANSWER)
    said = processor.tokenizer.decode(conversation._history.turns[-1].batch.cpu["input_ids"][0])
    assert said.split()[0] == "</s>", "the end of the answer, which wasn't generated"
    assert said.index("w4") < said.index("<image>")
    assert torch.equal(cold(conversation, ANSWER), last.ids)
    assert [message["role"] for message in conversation.messages] == ["system", *["user", "assistant"] * 3]
    assert conversation.messages[2]["content"][0]["text"] == first.text
    assert len(last.decisions) == len(conversation.decisions) == 2


def test_an_end_that_was_generated_isnt_written_twice():
    flex, processor = internvl()
    conversation = Conversation(flex, processor)
    end = processor.tokenizer.eos_token_id
    first = conversation.ask("w1", [picture(0)], max_new_tokens=3, forced_eos_token_id=end)
    assert int(first.ids[-1]) == end
    reply = conversation.ask("w2", **ANSWER)
    ids = [int(token) for one in conversation._history.turns for token in one.batch.cpu["input_ids"][0]]
    assert ids.count(end) == 1
    assert torch.equal(cold(conversation, ANSWER), reply.ids)


def test_a_budget_for_all_images():
    flex, processor = internvl()
    conversation = Conversation(flex, processor, budget=tokenflex.Fade(tokens=40, step=1, recall=0.0))
    for number in range(5):
        reply = conversation.ask(f"w{number}", [picture(number)], **ANSWER)
        assert torch.equal(cold(conversation, ANSWER), reply.ids)
        assert reply.tokens <= 40
    levels = [decision.level for decision in reply.decisions]
    assert levels == sorted(levels)
    assert levels[-1] > levels[0]
    reasons = [decision.reason for decision in reply.decisions]
    assert reasons[-1] == "one of the newest"
    assert reasons[0] == "older by 4 steps"
    assert conversation.ask("w9", level="finest", **ANSWER).tokens == sum(one.of for one in reply.decisions)


class Turning:
    """Scores of the levels, one table per turn."""

    def __init__(self, monkeypatch, flex, *best):
        self.best = iter(best)
        monkeypatch.setattr(flex.compressor, "judged", self.judged)

    def judged(self, images, instructions, pyramids=None):
        level = next(self.best)
        return torch.nn.functional.one_hot(torch.full((len(images),), level), 5).float(), pyramids


@pytest.mark.parametrize(
    ("routing", "expected"),
    [("reroute", [1, 3, 0]), ("first_turn", [1, 1, 1]), ("max_over_turns", [1, 3, 3])],
)
def test_what_another_question_may_change(monkeypatch, routing, expected):
    flex, processor = internvl()
    Turning(monkeypatch, flex, 1, 3, 0, 2)
    conversation = Conversation(flex, processor, routing=routing)
    found = [conversation.ask("w1", [picture(0)], **ANSWER)]
    found += [conversation.ask(f"w{number}", **ANSWER) for number in (2, 3)]
    assert [reply.decisions[0].level for reply in found] == expected
    assert (found[2].reused > found[1].reused > 0) == (routing != "reroute")
    new = conversation.ask("w4", [picture(1)], **ANSWER).decisions
    assert [one.level for one in new] == [{"reroute": 2, "first_turn": 1, "max_over_turns": 3}[routing], 2]


def test_memory_is_counted_and_kept_to():
    flex, processor = internvl()
    conversation = Conversation(flex, processor)
    reply = conversation.ask("w1", [picture(0)], level=2, **ANSWER)
    layers = conversation._cache.cache.layers
    assert reply.memory.cache == sum(one.keys.nbytes + one.values.nbytes for one in layers)
    image = conversation._history.turns[0].images[0]
    assert reply.memory.features == image.features.nbytes
    assert conversation.held == reply.memory
    tight = Conversation(flex, processor, memory=reply.memory.features + 10)
    first = tight.ask("w1", [picture(0)], level=2, **ANSWER)
    assert first.memory.dropped
    assert first.memory.cache == 0
    second = tight.ask("w2", level=2, **ANSWER)
    assert second.reused == 0
    assert torch.equal(second.ids, conversation.ask("w2", level=2, **ANSWER).ids)
    with pytest.raises(InputError, match=r"features of 2 images take \d+ bytes, more than memory="):
        tight.ask("w3", [picture(1)], **ANSWER)
    assert torch.equal(tight.ask("w3", level=2, **ANSWER).ids, conversation.ask("w3", level=2, **ANSWER).ids)


def test_pixels_arent_kept():
    conversation = begun("llava_next")
    for inputs in turns(conversation.tiny, conversation.flex):
        conversation.go_on(inputs, **options(conversation.flex))
    for kept in conversation._history.turns:
        pixels = kept.batch.inputs.get("pixel_values")
        assert pixels is None or pixels.untyped_storage().nbytes() <= 8


def test_offloaded_features_give_the_same():
    flex, processor = internvl()
    here, there = (Conversation(flex, processor, offload=offload) for offload in (False, True))
    for number in range(3):
        one, other = (each.ask("w1", [picture(number)], level=1, **ANSWER) for each in (here, there))
        assert torch.equal(one.ids, other.ids)
    assert all(turn.images[0].features.device.type == "cpu" for turn in there._history.turns if turn.images)


def test_what_fails_changes_nothing(monkeypatch):
    flex, processor = internvl()
    conversation, other = Conversation(flex, processor), Conversation(flex, processor)
    for each in (conversation, other):
        each.ask("w1", [picture(0)], level=1, **ANSWER)
    before = (conversation.messages, conversation.decisions, list(conversation._history.turns))
    for broken, message in (
        (lambda: conversation.ask("w2", level=9), "level 9 is out of range"),
        (lambda: conversation.ask("w2", level=[1, 1]), "level has 2 entries for 1 images"),
        (lambda: conversation.ask("w2", num_beams=2), "2 answers to one question"),
        (lambda: conversation.ask("w2", escalate=True), "escalate= isn't taken here: only generate"),
        (lambda: conversation.ask("w2", buget=0.3), "Did you mean budget="),
        (lambda: conversation.ask([{"type": "sound"}]), "content item"),
        (lambda: conversation.ask([{"type": "image"}]), "the content shows 1 images, and 0 came with it"),
        (lambda: conversation.go_on({"input_ids": torch.ones(2, 3, dtype=torch.long)}), "a turn has 2 rows"),
    ):
        with pytest.raises(InputError, match=message):
            broken()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(flex.host, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            conversation.ask("w2")
    assert (conversation.messages, conversation.decisions, conversation._history.turns) == before
    one, two = conversation.ask("w2", level=1, **ANSWER), other.ask("w2", level=1, **ANSWER)
    assert torch.equal(one.ids, two.ids)
    assert one.reused == 0 < two.reused


def test_conversations_over_one_model_are_apart():
    flex, processor = internvl()
    alone = [Conversation(flex, processor) for _ in range(2)]
    mixed = [Conversation(flex, processor) for _ in range(2)]
    asked = [("w1", [picture(0)]), ("w2", []), ("w3", [picture(1)])]

    def said(conversation, level, turn):
        text, images = asked[turn]
        return conversation.ask(text, images, level=level, **ANSWER).ids.tolist()

    expected = [[said(one, level, turn) for turn in range(3)] for level, one in enumerate(alone)]
    found = [[said(one, level, turn) for level, one in enumerate(mixed)] for turn in range(3)]
    assert [list(rows) for rows in zip(*found, strict=True)] == expected


def test_settings_that_cannot_be():
    flex, processor = internvl()
    with pytest.raises(ConfigError, match="routing='never'; use one of"):
        Conversation(flex, processor, routing="never")
    with pytest.raises(ConfigError, match="memory=0"):
        Conversation(flex, processor, memory=0)
    with pytest.raises(ConfigError, match="shares its tokens out among all images anew"):
        Conversation(flex, processor, routing="first_turn", budget=tokenflex.Fade(tokens=9))
    with pytest.raises(InputError, match="text needs a processor"):
        Conversation(flex).ask("w1")


def test_a_template_that_hides_answers():
    flex, processor = internvl()
    processor = copy.deepcopy(processor)
    conversation = Conversation(flex, processor)
    conversation.ask("w1", **ANSWER)
    asked = "{% if m.role == 'user' %}{{ m.content[-1].text }}{% endif %}"
    processor.chat_template = "{% for m in messages %}" + asked + "{% endfor %}"
    with pytest.raises(DataError, match="writes an answer 0 times"):
        conversation.ask("w2", **ANSWER)


def test_turns_of_several_rows_or_with_positions_are_refused():
    tiny, flex = opened("llava")
    conversation = Conversation(flex)
    inputs = turn(tiny, flex, ROWS[0], 0, 0)
    length = inputs["input_ids"].shape[1]
    with pytest.raises(InputError, match="comes with position_ids"):
        conversation.go_on({**inputs, "position_ids": torch.arange(length)[None]})
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, 0] = 0
    with pytest.raises(InputError, match="1 of them padding"):
        conversation.go_on({**inputs, "attention_mask": mask})


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_next_video", "glm4v"])
def test_videos_and_images_in_turn(name):
    """A batch has images first and videos behind them, whatever the order of the turns."""
    tiny, flex = opened(name)
    conversation = Conversation(flex)
    rows = ((1, A_VIDEO, 2), (3, AN_IMAGE, 4), (5, A_VIDEO, 6), (7, 8))
    found = []
    for number, row in enumerate(rows):
        batch, level = turn(tiny, flex, row, number, number), [1, 2, 0][: number + 1]
        found.append(conversation.go_on(batch, level=level, **options(flex)))
        assert torch.equal(cold(conversation), found[-1].ids)
    assert [one.level for one in conversation.decisions] == [1, 2, 0]
    assert all(reply.reused > 0 for reply in found[1:])
    asked = zip(conversation._history.turns[::2], conversation.decisions, strict=False)
    assert all(int(one.counts[0, decision.level]) == decision.tokens for one, decision in asked)
