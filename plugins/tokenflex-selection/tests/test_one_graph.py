"""A pyramid can be compiled as one graph: nothing in it asks the host."""

from dataclasses import replace

import pytest
import torch

import tokenflex_selection
from tokenflex.contracts import Grid, Scaler

SCALERS = [name for name in tokenflex_selection.__all__ if issubclass(getattr(tokenflex_selection, name), Scaler)]


@pytest.mark.parametrize("name", SCALERS)
def test_a_pyramid_is_one_graph(image, name):
    torch._dynamo.reset()
    scaler, picture = getattr(tokenflex_selection, name).Config().build(), image(Grid(4, 4), leading=())

    def features(values):
        return [level.features for level in scaler.pyramid(replace(picture, features=values))]

    compiled = torch.compile(features, backend="eager", fullgraph=True)
    for found, expected in zip(compiled(picture.features), features(picture.features), strict=True):
        assert torch.equal(found, expected)
