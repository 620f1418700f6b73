"""Sample images fit the model: the quickstart's where it knows their words, photographs elsewhere."""

import tokenflex
from tokenflex.demo import answering, samples
from tokenflex.demo.answering import Model
from tokenflex.quickstart.host import build_processor, seeded
from tokenflex.quickstart.images import SENTENCES, scenes, words


def test_the_quickstart_s_model_gets_held_out_images_it_can_be_asked_about():
    found = samples.examples(build_processor())
    assert len(found) == samples.COUNT
    assert len({one.image.tobytes() for one in found}) == samples.COUNT
    assert {one.image.size for one in found} == {(128, 64)}
    assert all(question[0].isupper() and question.endswith("?") for one in found for question in one.questions)
    asked = [[samples.as_asked(build_processor(), question) for question in one.questions] for one in found]
    assert {word for one in asked for question in one for word in question.split()} <= set(words())
    first = [[question.split()[0] for question in one[:2]] for one in asked]
    assert ["which", "digit"] in first  # a coarse question first, and a fine one about the same image
    assert ["which", "ink"] in first
    assert "how" in [one for one, _ in first]


def test_sentences_become_what_the_quickstart_s_model_was_trained_on(processor):
    own = build_processor()
    assert samples.as_asked(own, " which  digit is BLUE ") == "digit blue"
    assert samples.as_asked(own, "Which colour is the digit 3?") == "ink 3"
    assert samples.as_asked(own, "digit blue") == "digit blue"
    assert samples.as_asked(own, "What is this?") == "What is this?"
    assert samples.as_asked(processor, "Which digit is blue?") == "Which digit is blue?"
    assert {asked for image in scenes(0, "train", 40) for asked in (one.question for one in image.questions)} <= set(
        SENTENCES
    )


def test_the_model_is_asked_in_its_own_words(image, monkeypatch):
    host, own = seeded(0)
    model = Model(tokenflex.wrap(host).eval(), own, "small", new_tokens=1)
    seen = []
    real = own.apply_chat_template
    monkeypatch.setattr(
        own, "apply_chat_template", lambda messages, *a, **k: seen.append(messages) or real(messages, *a, **k)
    )
    reply = answering.answer(model, answering.ask(model, image, "Which digit is blue?"))
    assert "digit blue" in str(seen)
    assert "Which digit" not in str(seen)
    assert reply.unknown == ()


def test_other_models_get_photographs(processor):
    found = samples.examples(processor)
    assert [one.name for one in found] == list(samples.PHOTOGRAPHS)
    assert all(one.image.mode == "RGB" and len(one.questions) > 1 for one in found)
    assert not samples.speaks_quickstart(processor)
