"""The laws of routers."""

from dataclasses import replace

import torch
from torch import Tensor

from tokenflex.contracts import Ballots, Grid, Instruction
from tokenflex.testing.bench import CANONICAL, GRIDS, PROMPT, Bench, Check, Skip, same, stacked


def _vote(bench: Bench, seed: int = 0, instruction: Instruction | None = None, grid: Grid = CANONICAL) -> Ballots:
    instruction = bench.instruction(seed=seed) if instruction is None else instruction
    return bench.build()(bench.pyramid(bench.image(grid, seed=seed)), instruction)


def shapes_fit(bench: Bench) -> None:
    """Ballots have the right shape, for several grids and numbers of views."""
    router = bench.build()
    for grid in GRIDS:
        for views in (1, 3):
            ballots = router(bench.pyramid(bench.image(grid, views)), bench.instruction())
            voters = sum(segment.tokens for segment in ballots.segments)
            expected = (views, voters, bench.levels)
            shape = tuple(ballots.logits.shape)
            assert shape == expected, f"on {grid}, {views} views: logits {shape}, segments ask for {expected}"
            assert tuple(ballots.mask.shape) == expected[:2], f"mask {tuple(ballots.mask.shape)}, not {expected[:2]}"


def segments_known_in_advance(bench: Bench) -> None:
    """``segments`` names as many voters as voting gives."""
    router = bench.build()
    for grid in GRIDS:
        pyramid = bench.pyramid(bench.image(grid))
        promised = router.segments([level.grid for level in pyramid])
        segments = router(pyramid, bench.instruction()).segments
        assert tuple(promised) == tuple(segments), f"on {grid} promised {promised}, gave {segments}"


def votes_without_words(bench: Bench) -> None:
    """An empty instruction is an instruction."""
    logits = _vote(bench, instruction=bench.instruction(0)).logits
    assert bool(logits.isfinite().all()), "an empty instruction gives NaN or infinity"


def masked_words_are_inert(bench: Bench) -> None:
    """Padding an instruction changes nothing."""
    plain = bench.instruction()
    padding = torch.full((5, bench.dim), 9.0)
    padded = Instruction(
        torch.cat([plain.embeddings, padding]), torch.cat([plain.mask, torch.zeros(5, dtype=torch.bool)])
    )
    same(
        _vote(bench, instruction=padded).logits, _vote(bench, instruction=plain).logits, "with and without masked words"
    )


def batch_equals_singles(bench: Bench) -> None:
    """A stack of images is each of its images."""
    router = bench.build()
    images, instruction = zip(*((bench.image(seed=s), bench.instruction(seed=s)) for s in (0, 1)), strict=True)
    together = router(bench.pyramid(stacked(*images)), stacked(*instruction))
    for i in (0, 1):
        alone = router(bench.pyramid(images[i]), instruction[i])
        same(together.logits[i], alone.logits, "an image alone and in a batch")


def repeats_itself(bench: Bench) -> None:
    """The same tokens get the same ballots in evaluation mode, whatever the global random state is."""
    same(_vote(bench).logits, _vote(bench).logits, "two votes on one image", 0.0)
    router = bench.build()
    first, second = (router(bench.pyramid(bench.image()), bench.instruction()).logits for _ in range(2))
    same(first, second, "two votes of one router on one image", 0.0)


def input_is_left_alone(bench: Bench) -> None:
    """Neither pyramid nor instruction is changed in place."""
    pyramid, instruction = bench.pyramid(bench.image()), bench.instruction()
    before: list[Tensor] = [t.clone() for t in (*(level.features for level in pyramid), instruction.embeddings)]
    bench.build()(pyramid, instruction)
    after = (*(level.features for level in pyramid), instruction.embeddings)
    assert all(torch.equal(b, a) for b, a in zip(before, after, strict=True)), "voting changes its input in place"


def stays_finite(bench: Bench) -> None:
    """Ballots are finite, also where all tokens are zeros."""
    image = bench.image()
    blank = replace(image, features=torch.zeros_like(image.features))
    instruction = Instruction(torch.zeros(PROMPT, bench.dim), torch.ones(PROMPT, dtype=torch.bool))
    logits = bench.build()(bench.pyramid(blank), instruction).logits
    assert bool(logits.isfinite().all()), "zeros give NaN or infinity"


def gradients_reach_parameters(bench: Bench) -> None:
    """Every parameter gets a gradient."""
    router = bench.build()
    if not list(router.parameters()):
        raise Skip("the router has no parameters")
    router(bench.pyramid(bench.image()), bench.instruction()).logits.square().sum().backward()
    without = [name for name, p in router.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"no gradient reaches {without}"


def votes_about_every_level(bench: Bench) -> None:
    """Every level gets votes, also where fewer are shown, as of an image that was made smaller."""
    router = bench.build()
    if router.compares_levels:
        raise Skip("the router declares compares_levels = True, so it is shown all of them")
    shown = bench.pyramid(bench.image())[:2]
    levels = router(shown, bench.instruction()).logits.shape[-1]
    assert levels == bench.levels, (
        f"shown {len(shown)} entries it votes about {levels} of {bench.levels} levels; say compares_levels = True if "
        "its votes are about what it is shown"
    )


def needs_are_told(bench: Bench) -> None:
    """Only attention can be asked for, and it is read only then."""
    unknown = sorted(bench.needs - {"attention"})
    assert not unknown, f"needs {unknown}; routers can ask for attention only, and the instruction is always there"
    segments = _vote(bench).logits
    full = bench.build()(bench.pyramid(bench.full_image()), bench.instruction()).logits
    same(full, segments, "with and without attention that isn't asked for")


CHECKS = (
    Check("shapes-fit", "ballots have one row per voter of the segments and one column per level", shapes_fit),
    Check("segments-known-in-advance", "segments says how the voters will be laid out", segments_known_in_advance),
    Check("votes-without-words", "an instruction may be empty", votes_without_words),
    Check("masked-words-are-inert", "padding of instructions has no say", masked_words_are_inert),
    Check("batch-equals-singles", "an image's ballots don't depend on its batch", batch_equals_singles),
    Check("repeats-itself", "the same request gives the same ballots", repeats_itself),
    Check("input-is-left-alone", "nothing is changed in place", input_is_left_alone),
    Check("stays-finite", "blank images give finite ballots", stays_finite),
    Check("votes-about-every-level", "a router that doesn't compare levels votes about all, whatever it is shown",
          votes_about_every_level),
    Check("needs-are-told", "what isn't declared as needed changes nothing", needs_are_told),
    Check("gradients-reach-parameters", "every parameter can be trained", gradients_reach_parameters),
)  # fmt: skip
