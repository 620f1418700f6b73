"""Every part of the law of smaller images has an adapter that breaks it, and is shown to catch it."""

from dataclasses import replace

import pytest
import torch

from tests.hosts.served import served
from tokenflex.hosts.grid import GridAdapter
from tokenflex.testing import resize_checks
from tokenflex.testing.bench import Skip
from tokenflex.testing.host_bench import ROWS, HostBench
from tokenflex.testing.resize_checks import CLAIMS


class Copying(GridAdapter):
    """Makes a new batch of full images."""

    def resized(self, batch, shares):
        return replace(super().resized(batch, shares))


class Blurring(GridAdapter):
    """Changes images that are to stay as they are, where not all are asked for."""

    def encode_resized(self, batch, shares, images):
        found = super().encode_resized(batch, shares, images)
        if len(found) == len(batch.spans):
            return found
        return tuple(replace(image, features=1.01 * image.features) for image in found)


class Hasty(GridAdapter):
    """Runs the tower to learn of sizes."""

    def resized(self, batch, shares):
        self.encode(batch)
        return super().resized(batch, shares)


class Miscounting(GridAdapter):
    """Promises one token more."""

    def count(self, batch, kept, frames=None):
        return super().count(batch, kept, frames) + 1


class Growing(GridAdapter):
    """Takes small shares for large ones."""

    def resized(self, batch, shares):
        return super().resized(batch, [share if share == 1 else 1 - share for share in shares])

    def encode_resized(self, batch, shares, images):
        return super().encode_resized(batch, [share if share == 1 else 1 - share for share in shares], images)


class Centred(GridAdapter):
    """Takes the batch's mean off."""

    def encode_resized(self, batch, shares, images):
        found = super().encode_resized(batch, shares, images)
        mean = torch.cat([image.features.flatten(0, -2) for image in found]).mean(0)
        return tuple(replace(image, features=image.features - 9 * mean) for image in found)


class AttendingPadding(GridAdapter):
    """Lets words attend to padding."""

    def splice(self, batch, images, scaled, padding_side=None, rows=None):
        spliced = super().splice(batch, images, scaled, padding_side, rows)
        mask = torch.ones_like(spliced.inputs["input_ids"])
        return replace(spliced, inputs={**spliced.inputs, "attention_mask": mask})


class Unlabelling(GridAdapter):
    """Forgets the first label of the batch."""

    def resized(self, batch, shares):
        small = super().resized(batch, shares)
        labels = small.cpu["labels"].clone()
        labels[tuple((labels >= 0).nonzero()[0])] = -100
        return replace(small, cpu={**small.cpu, "labels": labels}, inputs={**small.inputs, "labels": labels})


class Shifted(GridAdapter):
    """Tells places one too early."""

    def resized(self, batch, shares):
        small = super().resized(batch, shares)
        origin = small.origin
        return small if origin is None else replace(small, origin=torch.where(origin > 0, origin - 1, origin))


class Meddling(GridAdapter):
    """Writes into the host."""

    def encode_resized(self, batch, shares, images):
        self.host.lm_head.weight.data.add_(1.0)
        return super().encode_resized(batch, shares, images)


class Greedy(GridAdapter):
    """Writes into the batch."""

    def encode_resized(self, batch, shares, images):
        batch.inputs["pixel_values"].mul_(2)
        return super().encode_resized(batch, shares, images)


class Detached(GridAdapter):
    """Stops gradients."""

    def encode_resized(self, batch, shares, images):
        found = super().encode_resized(batch, shares, images)
        return tuple(replace(image, features=image.features.detach()) for image in found)


class Copious(GridAdapter):
    """Copies batches without images."""

    def resized(self, batch, shares):
        small = super().resized(batch, shares)
        return small if shares else replace(small)


BROKEN = (
    ("full_size_is_untouched", Copying, "finest: the batch isn't given back"),
    ("full_size_is_untouched", Blurring, "finest: features of image"),
    ("counts_come_first", Hasty, "count: .* ran before"),
    ("counts_come_first", Miscounting, "count: .* tokens at"),
    ("counts_come_first", Growing, "count: sizes have"),
    ("neighbours_change_nothing", Centred, "batch: row"),
    ("padding_changes_nothing", AttendingPadding, "padding: "),
    ("answers_stay", Unlabelling, "labels: "),
    ("origins_are_told", Shifted, "origin: row"),
    ("host_stays", Meddling, "untouched: the host"),
    ("host_stays", Greedy, "untouched: .* of the batch"),
    ("gradients_arrive", Detached, "gradients: "),
    ("text_stays", Copious, "text: "),
)


def test_no_part_lacks_a_broken_adapter():
    assert {name for name, _, _ in BROKEN} == {claim.__name__ for claim in CLAIMS}


@pytest.mark.parametrize(("name", "broken", "told"), BROKEN, ids=[kind.__name__ for _, kind, _ in BROKEN])
@torch.no_grad()
def test_the_part_catches_it(name, broken, told):
    tiny = served("qwen2_vl")
    part = getattr(resize_checks, name)
    part(HostBench(GridAdapter(tiny.build()), tiny), ROWS)
    with pytest.raises(AssertionError, match=told):
        part(HostBench(broken(tiny.build()), tiny), ROWS)


@torch.no_grad()
def test_hosts_without_smaller_images_are_left_out():
    tiny = served("idefics3")
    with pytest.raises(Skip, match="text around every tile"):
        resize_checks.smaller_images_are_images(HostBench(GridAdapter(tiny.build()), tiny))
