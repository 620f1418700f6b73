"""How much is done for a choice: kernels per kept token, and what is multiplied with what."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tokenflex.contracts import Grid
from tokenflex_selection import (
    CDPrunerScaler,
    DivPruneScaler,
    FarthestPointScaler,
    HoloVScaler,
    IDSelectionScaler,
    MMTokScaler,
    NormScaler,
)
from tokenflex_selection.spread import own_cosines, own_products


class Work(TorchDispatchMode):
    """Counts the calls that compute something, views aside, and remembers the size of the largest result."""

    def __init__(self):
        super().__init__()
        self.kernels, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        views = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
        if not views and func is not torch.ops.aten.detach.default:
            self.kernels += 1
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return found


def kernels(config, one_image):
    with Work() as work:
        type(config).owner(config).scale(one_image, 0)
    return work.kernels


@pytest.mark.parametrize(
    ("scaler", "most"),
    [
        # The released loop of CDPruner takes 17.
        (CDPrunerScaler.Config, 17),
        (DivPruneScaler.Config, 8),
        (FarthestPointScaler.Config, 8),
        (lambda **given: NormScaler.Config(diversity=0.5, **given), 9),
        (IDSelectionScaler.Config, 5),
        (MMTokScaler.Config, 12),
    ],
)
def test_kernels_per_kept_token(image, scaler, most):
    one_image = image(Grid(8, 8), dim=64)
    few, many = (kernels(scaler(ratios=(count / 64, 1.0)), one_image) for count in (10, 30))
    assert (many - few) / 20 <= most


def test_holov_compares_no_two_tokens(image):
    # The crops' sums are the only products, 2 * tokens * dim operations per view; nothing is tokens x tokens.
    grid, dim = Grid(24, 24), 32
    one_image, scaler = image(grid, leading=(2,), views=2, dim=dim), HoloVScaler.Config().build()
    with FlopCounterMode(display=False) as flops, Work() as work:
        scaler.scale(one_image, 0)
    assert flops.get_total_flops() == 4 * 2 * grid.tokens * dim
    assert work.largest <= 4 * grid.tokens * dim < 4 * grid.tokens**2


@pytest.mark.parametrize("tokens", [1, 35, 255, 256, 257, 300])
@pytest.mark.parametrize("leading", [(), (2, 2)])
def test_products_of_all_with_all(tokens, leading):
    generator = torch.Generator().manual_seed(tokens)
    vectors = torch.randn(*leading, tokens, 33, generator=generator)
    with FlopCounterMode(display=False) as flops:
        found = own_products(vectors)
    assert torch.allclose(found, vectors @ vectors.mT, atol=1e-5)
    assert torch.equal(found, found.mT) or tokens < 256
    whole = 2 * vectors.numel() * tokens
    assert flops.get_total_flops() <= (whole if tokens < 256 else 0.65 * whole)


def test_cosines_of_all_with_all():
    vectors = torch.tensor([[3.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    expected = torch.tensor([[1.0, 0.0, 0.5**0.5], [0.0, 0.0, 0.0], [0.5**0.5, 0.0, 1.0]])
    assert torch.allclose(own_cosines(vectors.half()), expected, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert own_cosines(vectors).dtype == torch.float32
