"""Which requests are answered together: alike in length, equal in settings."""

from collections.abc import Hashable, Sequence


def batches(keys: Sequence[Hashable], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Places of requests, batch by batch; every place is in one batch.

    Args:
        keys: only requests with equal keys share a batch.
        lengths: longest first, so that padding is short and memory runs out at the start or never; equals keep
            their order.
        size: requests per batch, at most.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    found: list[list[int]] = []
    for places in groups.values():
        ordered = sorted(places, key=lambda place: -lengths[place])
        found += [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return found
