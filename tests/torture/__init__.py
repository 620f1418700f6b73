"""Damage, faults and load in numbers: ``just torture`` writes docs/reliability.md, the tests run a small part."""
