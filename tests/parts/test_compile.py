"""Scaler, router and voter compile as one graph, whatever number of tiles, words and images comes along.

In a process of its own: shape checks, on while testing, are no part of the graph.
"""

import subprocess
import sys

import pytest
import torch
from packaging.version import Version

SCRIPT = """
import torch
from torch._dynamo.testing import CompileCounter
from tokenflex.contracts import Grid, Instruction, VisualTokens
from tokenflex.routers.avg import AVGRouter
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.voters.position_weighted import PositionWeightedVoter

torch.manual_seed(0)
grid = Grid(8, 8)
scaler = AveragePoolScaler.Config().build()
router = AVGRouter.Config(text_tokens=4, heads=2, attend="{attend}", dropout=0.0).build(dim=16, num_levels=5)
voter = PositionWeightedVoter.Config().build(segments=router.segments(scaler.layouts(grid)), num_levels=5)

def scores(features, words, mask):
    tokens = VisualTokens(features, grid)
    pyramid = [scaler.scale(tokens, level) for level in range(5)]
    return voter(router(pyramid, Instruction(words, mask)))

router.eval(), voter.eval()
counter = CompileCounter()
compiled = torch.compile(scores, fullgraph=True, dynamic=True, backend=counter)
for images, views, count in ((2, 3, 6), (3, 5, 9), (4, 2, 7), (2, 4, 12), (5, 3, 5)):
    features = torch.randn(images, views, grid.tokens, 16)
    words = torch.randn(images, count, 16)
    mask = torch.ones(images, count, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(compiled(features, words, mask), scores(features, words, mask), atol=1e-5, rtol=1e-5)
assert counter.frame_count == 1, f"{{counter.frame_count}} graphs for five sizes"
"""


@pytest.mark.skipif(Version(torch.__version__) < Version("2.7"), reason="torch 2.6 can't trace dataclasses.replace")
@pytest.mark.parametrize("attend", ["tiles", "tokens"])
def test_one_graph_for_every_size(attend):
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(attend=attend)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
