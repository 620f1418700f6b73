"""Images to try scalers on, and the laws that every selection keeps."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import settings
from torch._subclasses.fake_tensor import FakeTensorMode

from tokenflex.contracts import Grid, Instruction, VisualTokens
from tokenflex.ops.keeping import everything, kept_count, selected

settings.register_profile("selection", max_examples=20, deadline=None, derandomize=True)
settings.load_profile("selection")

BATCH, VIEWS, DIM, WORDS = 2, 2, 6, 4


def make_image(grid, seed=0, leading=(BATCH,), views=VIEWS, dim=DIM, words=WORDS):
    """Random tokens with attention and an instruction, the last word of which is masked."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(*leading, views, grid.tokens, dim, generator=generator)
    attention = torch.rand(*leading, views, grid.tokens, generator=generator)
    mask = torch.ones(*leading, words, dtype=torch.bool)
    mask[..., -1:] = False
    instruction = Instruction(torch.randn(*leading, words, dim, generator=generator), mask)
    return VisualTokens(features, grid, attention=attention, instruction=instruction)


def rows_of(scaled):
    """Per view (of all images, flattened) the indices of the kept tokens, ascending."""
    return [[i for i, into in enumerate(view) if into >= 0] for view in scaled.assignment.flatten(0, -2).tolist()]


def one_view(image, item, view):
    words = image.instruction
    return replace(
        image,
        features=image.features[item, view : view + 1],
        attention=image.attention[item, view : view + 1],
        instruction=Instruction(words.embeddings[item], words.mask[item]),
    )


def shuffled(image, order):
    return replace(image, features=image.features[..., order, :], attention=image.attention[..., order])


def without_values(image, mode):
    """Tensors that have shapes only: reading one raises."""
    words = image.instruction
    return replace(
        image,
        features=mode.from_tensor(image.features),
        attention=mode.from_tensor(image.attention),
        instruction=Instruction(mode.from_tensor(words.embeddings), mode.from_tensor(words.mask)),
    )


def check_counts(scaler, image):
    """Exact counts, in grid order, every kept token from exactly one source."""
    for ratio, level in zip(scaler.ratios, scaler.pyramid(image), strict=True):
        count = kept_count(ratio, image.grid.tokens)
        kept = rows_of(level)
        assert level.features.shape == (*image.features.shape[:-2], count, image.features.shape[-1])
        features = image.features.flatten(0, -3)
        for view, places in enumerate(kept):
            assert len(places) == count
            assert torch.equal(level.features.flatten(0, -3)[view], features[view, places])
            into = level.assignment.flatten(0, -2)[view, places]
            assert into.tolist() == list(range(count))


def check_size(scaler, image):
    """The unit of the features is nothing."""
    for level in range(scaler.num_levels):
        expected = scaler.scale(image, level).assignment
        for factor in (2**-10, 2**10):
            assert torch.equal(
                scaler.scale(replace(image, features=factor * image.features), level).assignment, expected
            )


def check_autocast(scaler, image):
    """Decisions are made in float32, also under autocast."""
    for level in range(scaler.num_levels):
        with torch.autocast("cpu", torch.bfloat16):
            found = scaler.scale(image, level)
        assert torch.equal(found.assignment, scaler.scale(image, level).assignment)


def check_independence(scaler, image):
    """Every view of every image by itself."""
    for number, level in enumerate(scaler.pyramid(image)):
        for item in range(image.features.shape[0]):
            for view in range(image.features.shape[1]):
                alone = scaler.scale(one_view(image, item, view), number)
                assert torch.equal(alone.assignment[0], level.assignment[item, view])


def check_permutation(scaler, image, seed):
    """Tokens in another order: the same tokens are kept."""
    order = torch.randperm(image.grid.tokens, generator=torch.Generator().manual_seed(seed)).tolist()
    moved = shuffled(image, order)
    for number in range(scaler.num_levels):
        for before, after in zip(
            rows_of(scaler.scale(image, number)), rows_of(scaler.scale(moved, number)), strict=True
        ):
            assert sorted(order[place] for place in after) == before


def check_nested(scaler, image):
    """A coarser level keeps a subset of a finer one's tokens."""
    levels = [rows_of(level) for level in scaler.pyramid(image)]
    for coarse, fine in itertools.pairwise(levels):
        assert all(set(few) <= set(many) for few, many in zip(coarse, fine, strict=True))


class Laws:
    """What holds for a selection on any image."""

    def __call__(self, config, grid, seed, *, permutable=True, nested=True):
        scaler, image = config.build(), make_image(grid, seed)
        for one_image in (image, *(replace(image, features=torch.full_like(image.features, v)) for v in (0.0, 7.0))):
            check_counts(scaler, one_image)
        check_size(scaler, image)
        check_autocast(scaler, image)
        check_independence(scaler, image)
        if permutable:
            self.permute(config, image, seed)
        if nested:
            check_nested(scaler, image)

    def permute(self, config, image, seed):
        check_permutation(config.build(), image, seed)

    def stay_on_device(self, config):
        """Works on tensors without values, which the host can't read."""
        image = make_image(Grid(5, 4))
        with FakeTensorMode() as mode:
            levels = config.build().pyramid(without_values(image, mode))
        assert [level.features.shape[-2] for level in levels] == [1, 3, 5, 10, 20]


@pytest.fixture(scope="session")
def image():
    return make_image


@pytest.fixture(scope="session")
def kept():
    return rows_of


@pytest.fixture(scope="session")
def laws():
    return Laws()


@pytest.fixture(scope="session")
def tiny():
    """An image of one view in a row, from plain lists."""

    def build(features, attention=None, words=None, grid=None):
        values = torch.tensor([features], dtype=torch.float32)
        grid = grid or Grid(1, values.shape[1])
        given = None
        if words is not None:
            embeddings = torch.tensor(words, dtype=torch.float32).reshape(-1, values.shape[-1])
            given = Instruction(embeddings, torch.ones(len(embeddings), dtype=torch.bool))
        looks = None if attention is None else torch.tensor([attention])
        return VisualTokens(values, grid, attention=looks, instruction=given)

    return build


@pytest.fixture(scope="session")
def palette():
    """(image, first places of its distinct tokens): 24 tokens, each one of five, in one view."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randn(5, 8, generator=generator)
    which = [0, 0, 1, 1, 2, 0, 3, 2, 2, 4, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    words = Instruction(torch.zeros(0, 8), torch.zeros(0, dtype=torch.bool))
    image = VisualTokens(colours[which][None], Grid(4, 6), attention=torch.ones(1, 24), instruction=words)
    return image, [0, 2, 4, 6, 9]


@pytest.fixture(scope="session")
def levels_of():
    """A pyramid that keeps the first so many tokens at each level, and all at the last."""

    def build(features, counts):
        side = Grid(1, features.shape[-2])
        tokens = VisualTokens(features, side)
        places = torch.arange(side.tokens).expand(features.shape[:-1])
        return [*(selected(tokens, places[..., :count]) for count in counts), everything(tokens)]

    return build
