"""The router alone: the published form against ours, on random tokens and words."""

from functools import partial

import torch

from benchmarks import measure, published
from benchmarks.measure import Flops, Row
from benchmarks.sizes import Size
from benchmarks.steps import DisagreementError
from tokenflex import compressor
from tokenflex.compressor import Compressor
from tokenflex.contracts import Grid, Instruction, VisualTokens
from tokenflex.policies.argmax import ArgmaxPolicy
from tokenflex.routers.avg import AVGRouter
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.voters.position_weighted import PositionWeightedVoter

KEY_AT = 2048
"""Width whose ratio is ``router_ratio``."""
TOLERANCE = 1e-3


def rows(size: Size, seed: int) -> list[Row]:
    """Seconds and FLOPs of one image's scores at every width, with its pooling, without gradients.

    Raises:
        DisagreementError: the two forms give different scores.
    """
    return [row for dim in size.routers for row in _at(size, seed, dim)]


@torch.no_grad()
def _at(size: Size, seed: int, dim: int) -> list[Row]:
    torch.manual_seed(seed)
    grid = Grid(size.patches, size.patches)
    parts = compressor.build(
        AveragePoolScaler.Config(),
        AVGRouter.Config(),
        PositionWeightedVoter.Config(),
        ArgmaxPolicy.Config(),
        dim=dim,
        grid=grid,
    ).eval()
    parts.to(size.device)
    image = VisualTokens(torch.randn(size.tiles, grid.tokens, dim, device=size.device), grid, row=0)
    embeddings = torch.randn(size.router_words, dim, device=size.device)
    words = Instruction(embeddings, torch.ones(size.router_words, dtype=torch.bool, device=size.device))
    runs = {"published": partial(_published, parts, image, words), "ours": partial(parts.scores, [image], [words])}
    flops = Flops()
    expected, actual = (flops(run).flatten() for run in runs.values())
    if float((expected - actual).abs().max()) > TOLERANCE:
        raise DisagreementError(
            f"at width {dim} the routers' scores are {actual.tolist()} and {expected.tolist()}, further apart than "
            f"{TOLERANCE}; no figures."
        )
    parts.to(size.dtype)
    seconds = measure.alternated(runs, dict.fromkeys(runs, size.pairs), size.device)
    key = "router_ratio" if dim == KEY_AT else None
    title = f"router, width {dim}"
    return [
        Row(f"{title}, time", "seconds", seconds["ours"], seconds["published"], key),
        Row(f"{title}, FLOPs", "FLOPs", [flops.counts[1]], [flops.counts[0]]),
    ]


def _published(parts: Compressor, image: VisualTokens, words: Instruction) -> torch.Tensor:
    pyramid = [parts.scaler.scale(image, level) for level in range(parts.num_levels)]
    return published.router_scores(parts.router, parts.voter, pyramid, words)
