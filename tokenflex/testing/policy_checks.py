"""The laws of policies."""

import torch
from torch import Tensor

from tokenflex.testing.bench import Bench, Check, Skip

IMAGES = 6


def _scores(bench: Bench, images: int = IMAGES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(images, bench.levels, generator=generator)
    tokens = torch.arange(1, bench.levels + 1).cumsum(0) * torch.arange(1, images + 1)[:, None]
    return scores, tokens


def one_level_per_image(bench: Bench) -> None:
    """Every image gets one level, also where there is a single image."""
    policy = bench.build()
    for images in (1, IMAGES):
        chosen = policy(*_scores(bench, images))
        assert tuple(chosen.shape) == (images,), f"{images} images give choices of shape {tuple(chosen.shape)}"
        assert not chosen.is_floating_point(), f"choices are {chosen.dtype}, expected integers"


def levels_exist(bench: Bench) -> None:
    """0 to the number of levels less 1."""
    chosen = bench.build()(*_scores(bench))
    inside = bool(((chosen >= 0) & (chosen < bench.levels)).all())
    assert inside, f"choices {chosen.tolist()} leave 0..{bench.levels - 1}"


def images_are_independent(bench: Bench) -> None:
    """An image's level is its own, unless the policy says that it couples the images of a request."""
    policy = bench.build()
    if policy.couples:
        raise Skip("the policy couples the images of a request")
    scores, tokens = _scores(bench)
    together = policy(scores, tokens).tolist()
    alone = [policy(scores[i : i + 1], tokens[i : i + 1]).item() for i in range(IMAGES)]
    assert together == alone, f"together {together}, one by one {alone}"


def repeats_itself(bench: Bench) -> None:
    """The same scores get the same levels, whatever the global random state is."""
    policy = bench.build()
    first, second = (policy(*_scores(bench)).tolist() for _ in range(2))
    assert first == second, f"the same scores give {first}, then {second}"


def input_is_left_alone(bench: Bench) -> None:
    """Neither scores nor counts are changed in place."""
    scores, tokens = _scores(bench)
    before = scores.clone(), tokens.clone()
    bench.build()(scores, tokens)
    assert torch.equal(before[0], scores), "choosing changes the scores in place"
    assert torch.equal(before[1], tokens), "choosing changes the token counts in place"


CHECKS = (
    Check("one-level-per-image", "choices are one integer per image", one_level_per_image),
    Check("levels-exist", "only levels that exist are chosen", levels_exist),
    Check("images-are-independent", "an image's level doesn't depend on the others, unless declared",
          images_are_independent),
    Check("repeats-itself", "the same scores give the same choice", repeats_itself),
    Check("input-is-left-alone", "nothing is changed in place", input_is_left_alone),
)  # fmt: skip
