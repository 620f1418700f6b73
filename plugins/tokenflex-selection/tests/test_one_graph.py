"""A pyramid can be compiled as one graph: nothing in it asks the host.

In a process of its own: shape checks, on while testing, are no part of a graph.
"""

import subprocess
import sys

import pytest
import torch

SCRIPT = """
from dataclasses import replace
import torch
import tokenflex_selection
from tokenflex.contracts import Grid, Instruction, Scaler, VisualTokens

found = [getattr(tokenflex_selection, name) for name in tokenflex_selection.__all__]
words = Instruction(torch.randn(3, 8), torch.ones(3, dtype=torch.bool))
image = VisualTokens(torch.randn(2, 16, 8), Grid(4, 4), attention=torch.rand(2, 16), instruction=words)
methods = [part for part in found if issubclass(part, Scaler)]
for method in methods:
    torch._dynamo.reset()
    scaler = method.Config().build()
    features = lambda values: [level.features for level in scaler.pyramid(replace(image, features=values))]
    compiled = torch.compile(features, backend="eager", fullgraph=True)
    for one, other in zip(compiled(image.features), features(image.features), strict=True):
        assert torch.equal(one, other), method
print(len(methods))
"""


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="torch 2.6 can't trace dataclasses.replace")
def test_every_pyramid_is_one_graph():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("10\n", 0), done.stderr[-3000:]
