"""A tokenizer of words whose ids are those of the tiny hosts, and processors around it."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokenflex.testing.zoo.recipe import BREAK, END, IMAGE, START, VIDEO, VOCABULARY, WORD

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% for p in m.content %}{% if p.type == 'image' %} MARK {% else %} "
    "{{ p.text }} {% endif %}{% endfor %}{% if m.role == 'assistant' %} </s>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
MARKS = {IMAGE: "<image>", VIDEO: "<video>", START: "<img>", END: "</img>", BREAK: "<break>"}
NAMED = {
    "image_token": "<image>", "boi_token": "<img>", "eoi_token": "</img>", "start_image_token": "<img>",
    "end_image_token": "</img>", "context_image_token": "<image>", "video_token": "<video>",
}  # fmt: skip
OTHER = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "user", "assistant", ":")


def word_tokenizer():
    """Special tokens and placeholders where `tokenflex.testing.zoo.recipe` has them, then words ``w0``, ``w1``, ..."""
    words = dict(enumerate(SPECIAL.values())) | MARKS
    free = (i for i in range(VOCABULARY) if i not in words)
    words |= {next(free): word for word in OTHER}
    words |= {i: f"w{i - WORD}" for i in range(WORD, VOCABULARY)}
    made = Tokenizer(models.WordLevel({word: i for i, word in words.items()}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    marks = [*MARKS.values(), *OTHER[:3]]
    made.add_special_tokens(marks)
    return PreTrainedTokenizerFast(tokenizer_object=made, extra_special_tokens=NAMED, **SPECIAL)


def word_processor(make):
    """A processor, with a chat template.

    Args:
        make: gives it for a tokenizer.
    """
    made = make(word_tokenizer())
    made.chat_template = TEMPLATE.replace("MARK", made.image_token)
    return made
