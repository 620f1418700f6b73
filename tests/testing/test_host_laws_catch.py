"""Every law of hosts has an adapter that breaks it, and is shown to catch it."""

from dataclasses import replace

import pytest
import torch

from tests.hosts.served import served
from tokenflex.hosts.grid import GridAdapter
from tokenflex.testing.bench import Skip
from tokenflex.testing.host_bench import HostBench
from tokenflex.testing.host_checks import CHECKS, check_host


class Flipped(GridAdapter):
    """Hands every image's tokens over in reverse and negated."""

    def encode(self, batch):
        return tuple(replace(image, features=-3 * image.features.flip(-2)) for image in super().encode(batch))


class BackwardsInTime(GridAdapter):
    """Puts the last frame of a video first."""

    def encode(self, batch):
        found = super().encode(batch)
        return tuple(replace(image, features=image.features.flip(-3)) if image.video else image for image in found)


class Centred(GridAdapter):
    """Takes the batch's mean off, so that an image depends on its neighbours."""

    def encode(self, batch):
        found = super().encode(batch)
        mean = torch.cat([image.features.flatten(0, -2) for image in found]).mean(0) if found else 0
        return tuple(replace(image, features=image.features - 9 * mean) for image in found)


class Miscounting(GridAdapter):
    """Promises one token more."""

    def count(self, batch, kept, frames=None):
        return super().count(batch, kept, frames) + 1


class AttendingPadding(GridAdapter):
    """Lets words attend to padding."""

    def splice(self, batch, images, scaled, padding_side=None, rows=None):
        spliced = super().splice(batch, images, scaled, padding_side, rows)
        mask = torch.ones_like(spliced.inputs["input_ids"])
        return replace(spliced, inputs={**spliced.inputs, "attention_mask": mask})


class Unlabelling(GridAdapter):
    """Forgets the first label of every row."""

    def splice(self, batch, images, scaled, padding_side=None, rows=None):
        spliced = super().splice(batch, images, scaled, padding_side, rows)
        if "labels" not in spliced.inputs:
            return spliced
        labels = spliced.inputs["labels"].clone()
        for row in labels:
            row[(row >= 0).nonzero()[:1, 0]] = -100
        return replace(spliced, inputs={**spliced.inputs, "labels": labels})


class Meddling(GridAdapter):
    """Writes into the host."""

    def encode(self, batch):
        self.host.lm_head.weight.data.add_(1.0)
        return super().encode(batch)


class Forgetful(GridAdapter):
    """Leaves the projector out of the groups."""

    def parameter_groups(self):
        return {**super().parameter_groups(), "projector": ()}


class Misplaced(GridAdapter):
    """Spreads the tokens of packed rows out."""

    def position_ids(self, inputs):
        return 2 * super().position_ids(inputs)


class Comparing(GridAdapter):
    """Weighs an image's attention against that of its neighbours."""

    def encode(self, batch, attention=False):
        found = super().encode(batch, attention)
        if not attention:
            return found
        most = max(image.attention.max() for image in found)
        return tuple(replace(image, attention=image.attention / most) for image in found)


class Disordered(GridAdapter):
    """Gives rows that are asked for apart in another order."""

    def splice(self, batch, images, scaled, padding_side=None, rows=None):
        return super().splice(batch, images, scaled, padding_side, rows and rows[::-1])


class Lingering(GridAdapter):
    """Leaves smaller images their pixels."""

    def resized(self, batch, shares):
        small = super().resized(batch, shares)
        return replace(small, inputs={**batch.inputs, **small.inputs})


BROKEN = {
    **dict.fromkeys(
        ("logits", "greedy", "beams", "samples", "static-cache", "prompt-lookup", "assisted", "chunked-prefill"),
        Flipped,
    ),
    "loss": Unlabelling,
    "count": Miscounting,
    "padding": AttendingPadding,
    "batch": Centred,
    "batch-greedy": Centred,
    "batch-beams": Centred,
    "labels": Unlabelling,
    "untouched": Meddling,
    "text-only": AttendingPadding,
    "groups": Forgetful,
    "videos": BackwardsInTime,
    "answers": Unlabelling,
    "packed": Misplaced,
    "ragged": Disordered,
    "attention": Comparing,
    "resized": Lingering,
}
READABLE = "paligemma"
"""A host whose vision tower can be read; that of qwen2_vl can't."""


def test_no_law_lacks_a_broken_adapter():
    assert BROKEN.keys() == {check.name for check in CHECKS}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
@torch.no_grad()
def test_the_law_catches_it(check):
    tiny = served(READABLE if check.name == "attention" else "qwen2_vl")
    try:
        check.run(HostBench(GridAdapter(tiny.build()), tiny))
    except Skip as reason:
        pytest.skip(str(reason))
    with pytest.raises(AssertionError):
        check.run(HostBench(BROKEN[check.name](tiny.build()), tiny))


def test_exceptions_must_fail_for_a_named_reason():
    tiny = served("llava")
    adapter = GridAdapter(tiny.build())
    report = check_host(adapter, replace(tiny, exceptions={"count": "it was broken once"}))
    assert report.named("unexpected pass") == ["count"]
    assert not report.ok
    with pytest.raises(ValueError, match="name no law or give no reason"):
        check_host(adapter, replace(tiny, exceptions={"weather": "rain"}))
    with pytest.raises(ValueError, match="name no law or give no reason"):
        check_host(adapter, replace(tiny, exceptions={"count": " "}))
