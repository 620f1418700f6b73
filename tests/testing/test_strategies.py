"""The public strategies draw what they promise, and built-in scalers keep general laws on all of it."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex import scalers
from tokenflex.compressor import Compressor
from tokenflex.ops.assignment import mean_of_sources
from tokenflex.policies.argmax import ArgmaxPolicy
from tokenflex.routers.reconstruction import ReconstructionRouter
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.testing.strategies import LEADING, ballots, batches, grids, images, pyramids
from tokenflex.voters.mean import MeanVoter

BUILT_IN = ("average-pool", "random", "resize", "resolution", "stride")


@given(images(leading=st.sampled_from(LEADING), needs=["attention", "keys", "instruction"], video=st.booleans()))
def test_images_have_what_was_asked_for(image):
    places = image.features.shape[:-1]
    assert places[-1] == image.grid.tokens
    assert image.attention.shape == places
    torch.testing.assert_close(image.attention.sum(-1), torch.ones(places[:-1]))
    assert image.keys.shape[:-1] == places
    assert image.instruction.embeddings.shape[:-1] == image.instruction.mask.shape
    assert image.instruction.embeddings.shape[:-2] == places[:-2]


@given(images(grids(3)))
def test_what_was_not_asked_for_is_not_there(image):
    assert image.attention is image.keys is image.instruction is None
    assert image.grid.rows <= 3


@given(pyramids(needs=["attention"]))
def test_pyramids_go_from_coarse_to_fine(pyramid):
    counts = [level.features.shape[-2] for level in pyramid]
    assert counts == sorted(counts)
    assert all(level.attention is pyramid[0].attention for level in pyramid)


@given(ballots(levels=3, leading=(2,)))
def test_ballots_fit_their_segments(found):
    assert found.logits.shape[-2] == sum(grid.tokens for grid in found.segments) == found.mask.shape[-1]
    assert found.logits.shape[0] == 2


@given(batches(max_images=3))
def test_an_assembly_takes_a_batch_image_by_image(batch):
    shown, words = batch
    parts = [kind.Config().build() for kind in (AveragePoolScaler, ReconstructionRouter, MeanVoter, ArgmaxPolicy)]
    together = Compressor(*parts).scores(shown, words)
    for i, (image, said) in enumerate(zip(shown, words, strict=True)):
        torch.testing.assert_close(Compressor(*parts).scores([image], [said])[0], together[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", BUILT_IN)
@given(data=st.data())
def test_counts_and_assignments_of_built_in_scalers(name, data):
    image = data.draw(images(leading=st.sampled_from(LEADING)))
    scaler = scalers.get(name).Config().build()
    for layout, scaled in zip(scaler.layouts(image.grid), scaler.pyramid(image), strict=True):
        count = layout if isinstance(layout, int) else layout.tokens
        assert scaled.features.shape == (*image.features.shape[:-2], count, image.features.shape[-1])
        assert scaled.assignment.shape == image.features.shape[:-1]
        for row in scaled.assignment.flatten(0, -2).tolist():
            assert set(row) - {-1} == set(range(count))
        if scaled.averages:
            means = mean_of_sources(image.features, scaled.assignment, count)
            torch.testing.assert_close(scaled.features, means)


def test_the_kit_does_not_need_hypothesis():
    script = "import sys; sys.modules['hypothesis'] = None; import tokenflex.testing, tokenflex.testing.conformance"
    subprocess.run([sys.executable, "-c", script], check=True)
