"""The old name of `tokenflex.hosts.instruction`, for one more version."""

from tokenflex.renamed import attributes

_NAMES = ("Markers", "Scope", "instruction_mask", "instructions_of", "markers", "read_instructions")

__getattr__ = attributes(__name__, {name: f"tokenflex.hosts.instruction:{name}" for name in _NAMES})
