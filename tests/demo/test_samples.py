"""Sample images fit the model: the quickstart's where it knows their words, photographs elsewhere."""

from tokenflex.demo import samples
from tokenflex.quickstart.host import build_processor
from tokenflex.quickstart.images import words


def test_the_quickstart_s_model_gets_held_out_images_it_can_be_asked_about():
    found = samples.examples(build_processor())
    assert len(found) == samples.COUNT
    assert len({one.image.tobytes() for one in found}) == samples.COUNT
    assert {one.image.size for one in found} == {(128, 64)}
    assert {word for one in found for question in one.questions for word in question.split()} <= set(words())
    asked = [[question.split()[0] for question in one.questions[:2]] for one in found]
    assert ["which", "digit"] in asked  # a coarse question first, and a fine one about the same image
    assert ["which", "ink"] in asked
    assert "how" in [first for first, _ in asked]


def test_other_models_get_photographs(processor):
    found = samples.examples(processor)
    assert [one.name for one in found] == list(samples.PHOTOGRAPHS)
    assert all(one.image.mode == "RGB" and len(one.questions) > 1 for one in found)
    assert not samples.speaks_quickstart(processor)
