"""What the laws of hosts are tried on: an adapter, its tiny host, and batches for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenflex.contracts import HostAdapter, HostBatch, ScaledTokens, Spliced, VisualTokens
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.testing.bench import Skip
from tokenflex.testing.zoo.recipe import AN_IMAGE, WORD, Row, TinyHost

SCALER = AveragePoolScaler(AveragePoolScaler.Config())
COARSEST, FINEST = 0, SCALER.num_levels - 1
ROWS: Sequence[Row] = ((1, 2, AN_IMAGE, 3), (4, 5, 6, 7, 8), (AN_IMAGE, 9, 10, AN_IMAGE, 11, 12))
"""One image, none, two; of different lengths."""
LEVELS = (1, 3, 0)
NEW = 5


@dataclass(frozen=True)
class HostBench:
    """An adapter on a tiny host, and batches for it."""

    adapter: HostAdapter
    tiny: TinyHost

    @property
    def host(self) -> Any:
        """The plain host model."""
        return self.adapter.host

    def batch(self, rows: Sequence[Row] = ROWS, *, side: str = "left", first: int = 0) -> dict[str, Tensor]:
        """Inputs as the host's processor would make them."""
        return self.tiny.batch(self.host.config, rows, side=side, first=first)

    def shortened(self, inputs: Mapping[str, Any], levels: Sequence[int] | int, side: Any = None) -> Spliced:
        """The batch with every unit at its level."""
        batch, images, scaled = self.scaled(inputs, levels)
        return self.adapter.splice(batch, images, scaled, side)

    def scaled(
        self, inputs: Mapping[str, Any], levels: Sequence[int] | int
    ) -> tuple[HostBatch, tuple[VisualTokens, ...], list[ScaledTokens]]:
        """(the batch as it is read, its images, what every unit keeps at its level)."""
        batch = self.adapter.read(inputs)
        images = self.adapter.encode(batch)
        each = [levels] * len(images) if isinstance(levels, int) else list(levels)
        each = [each[i % len(each)] for i in range(len(images))] if images else []
        return batch, images, [SCALER.scale(image, level) for image, level in zip(images, each, strict=True)]

    def plainly(self, call: Callable[[], Any]) -> Any:
        """What the plain host gives.

        Raises:
            Skip: it refuses.
        """
        try:
            return call()
        except Exception as error:
            raise Skip(f"the plain host raises {type(error).__name__}: {str(error).splitlines()[0][:120]}") from error


@dataclass(frozen=True)
class HostCheck:
    """One law.

    Attributes:
        name: unique among the laws of hosts.
        law: what holds, as a sentence.
        run: raises ``AssertionError`` when it is broken, `Skip` when it asks nothing of this host.
    """

    name: str
    law: str
    run: Callable[[HostBench], None]


def labels_of(inputs: Mapping[str, Tensor]) -> Tensor:
    """Labels on every second word of a batch; all else is ignored."""
    ids = inputs["input_ids"]
    supervised = (ids >= WORD) & (ids % 2 == 1) & (inputs["attention_mask"] != 0)
    return ids.masked_fill(~supervised, -100)


def close(one: Tensor, other: Tensor, what: str) -> None:
    """Require that logits are equal up to rounding; ``what`` says in the message what differs."""
    assert one.shape == other.shape, f"{what}: {tuple(one.shape)} and {tuple(other.shape)}"
    limit = 1e-4 * max(1.0, other.abs().max().item())
    assert off(one, other) <= limit, f"{what}: logits differ by {off(one, other)}"


def off(one: Tensor, other: Tensor) -> float:
    """The largest difference between two tensors; infinite where their shapes differ."""
    return (one - other).abs().max().item() if one.shape == other.shape else float("inf")


def snapshot(host: Any) -> tuple[Any, ...]:
    """A host's tensors, and its classes, hooks and settings."""
    hooks = [[dict(m._forward_hooks), dict(m._forward_pre_hooks), dict(m._backward_hooks)] for m in host.modules()]
    classes = [dict(kind.__dict__) for kind in {type(m) for m in host.modules()}]
    return (
        {name: tensor.clone() for name, tensor in host.state_dict().items()},
        classes,
        hooks,
        host.config.to_dict(),
        host.generation_config.to_dict(),
    )
