"""Tiny hosts of architectures that the installed transformers lets us serve."""

import pytest

from tokenflex.tables.hosts import architectures, refusal
from tokenflex.testing.zoo.hosts import ZOO


def served(name):
    """The tiny host; skips the test, with the reason, where the architecture is refused."""
    reason = refusal(name) if name in architectures() else "this transformers doesn't know it"
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return ZOO[name]
