"""Stage 0: what the heads are to say, and that the tower learns it."""

import itertools

import pytest
import torch
from transformers import LlamaConfig

import tokenflex
from tokenflex.study import tower
from tokenflex.study.charts import CHARTS
from tokenflex.study.images import CHARACTERS, INKS, KINDS, Painter, images
from tokenflex.study.sources import DRAWINGS
from tokenflex.testing.tiny_hosts import tiny_tokenizer


def test_targets_are_what_is_asked(train):
    drawn = [*images(train, 0, 15)]
    found = tower.targets(drawn)
    assert {cells.shape for cells in found.cells} == {(15, 12, 12)}
    for i, image in enumerate(drawn):
        for (kind, answers), classes in zip(tower.WHOLE.items(), found.whole, strict=True):
            asked = [question.answer for question in image.questions if question.kind == kind]
            assert ([answers[int(classes[i])]] if classes[i] != tower.UNASKED else []) == asked
    assert [int(cells.max()) for cells in found.cells] == [len(CHARACTERS), len(INKS), len(DRAWINGS)]


def sure(classes, count):
    return 50.0 * torch.nn.functional.one_hot(classes.clamp(min=0), count).float()


def test_the_loss_is_least_where_every_head_is_right(train):
    wanted = tower.targets([*images(train, 0, 10)])
    cells = [sure(c, len(n) + 1) for c, n in zip(wanted.cells, tower.CELLS.values(), strict=True)]
    whole = [sure(c, len(n)) for c, n in zip(wanted.whole, tower.WHOLE.values(), strict=True)]
    assert tower.loss((cells, whole), wanted) < 1e-6
    for logits in (cells, whole):
        for place, right in enumerate(logits):
            logits[place] = right.flip(-1)
            assert tower.loss((cells, whole), wanted) > 1
            logits[place] = right


def test_cells_are_the_embeddings_of_what_they_show(train, made):
    words = tiny_tokenizer((*CHARACTERS, *INKS, *DRAWINGS, *KINDS, *CHARTS))
    table = torch.nn.Embedding(len(words), 32)
    drawn = [*images(train, 0, 10)]
    embedded, wanted = tower.Embedded(words, table), tower.targets(drawn)
    vectors, weight = embedded(wanted)

    def of(*texts):
        return table.weight[words.convert_tokens_to_ids(list(texts))].sum(0)

    for image, found, counts in zip(drawn, vectors, weight, strict=True):
        answers = {question.kind: question.answer for question in image.questions}
        whole = [answers[kind] for kind in ("type", "chart", "colour") if kind in answers]
        for row, col in itertools.product(range(12), range(12)):
            character, ink = image.cells[row, col]
            shown = [CHARACTERS[character], INKS[ink]] if character < len(CHARACTERS) else []
            shown += [answers["drawing"]] if image.subject[row, col] < len(DRAWINGS) else []
            assert torch.allclose(found[row, col], of(*(shown or whole)), atol=1e-6)
            assert counts[row, col] == pytest.approx(1.0 if shown else tower.EMPTY_WEIGHT)
    right = embedded.loss(vectors, wanted)
    assert right < 0.5  # the distance is 0, and the right words are the nearest
    assert embedded.loss(torch.zeros_like(vectors), wanted) > right + 1
    assert embedded.loss(vectors.roll(1, 0), wanted) > right + 1
    assert embedded.near[0] > 0


@pytest.fixture
def made():
    language = LlamaConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    return tokenflex.compose(
        "timm/tf_efficientnet_lite0",
        language,
        tokenizer=tiny_tokenizer(),
        pretrained=False,
        image_size=192,
        layer=(-2, -3, -1),
    )


def test_words_of_one_embedding_have_no_distance():
    """As of a tokenizer that knows only some of them: the others are all its unknown word."""
    vectors = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    assert tower.nearest(vectors) == pytest.approx((1 + 1 + (9 + 9) + 1) / 4)
    assert tower.nearest(torch.ones(3, 2)) == 1.0


def test_a_projector_sees_channels_of_one_scale():
    projector = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.GELU())
    features = torch.randn(5, 3, 3, 6) * 10.0 ** torch.arange(-2.0, 4.0) + 7
    flat = features.flatten(0, -2)
    expected = projector[0]((flat - flat.mean(0)) / flat.std(0))
    tower.standardise(projector, features)
    torch.testing.assert_close(projector[0](flat), expected, rtol=1e-3, atol=1e-3)


def test_the_tower_learns_and_its_first_stages_stay(made, train, monkeypatch):
    monkeypatch.setattr(tower, "BATCH", 5)
    vision = made.model.vision_tower
    before = {name: value.clone() for name, value in vision.state_dict().items()}
    painter, ticks = Painter(train, 0), []
    projector = made.model.multi_modal_projector[0].weight.detach().clone()
    heads = tower.teach(
        made.model,
        made.processor,
        lambda count: [painter.next() for _ in range(count)],
        steps=4,
        rate=1e-3,
        seed=0,
        tick=lambda: ticks.append(1),
    )
    assert not torch.equal(projector, made.model.multi_modal_projector[0].weight)
    changed = {name for name, value in vision.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("trunk.blocks.2") for name in changed)
    assert not any(name.startswith(("trunk.conv_stem", "trunk.blocks.0", "trunk.blocks.1.")) for name in changed)
    assert not any("running" in name for name in changed)
    assert len(ticks) == 4
    assert not vision.training
    assert all(parameter.requires_grad for parameter in vision.parameters())
    with torch.no_grad():
        cells, whole = heads(torch.randn(2, 12, 12, 592))
    assert [logits.shape for logits in cells] == [(2, 12, 12, 37), (2, 12, 12, 7), (2, 12, 12, 11)]
    assert [logits.shape for logits in whole] == [(2, 5), (2, 4), (2, 5)]
