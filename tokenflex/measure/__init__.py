"""Time, memory and work of one host with its parts, always beside the same host without them."""

from tokenflex.measure.break_even import BreakEven, Comparison
from tokenflex.measure.flops import Work
from tokenflex.measure.memory import Memory
from tokenflex.measure.plan import Plan, Setting
from tokenflex.measure.result import Answer, BatchProfile, Profile, SettingProfile
from tokenflex.measure.run import profile
from tokenflex.measure.surroundings import Surroundings
from tokenflex.measure.timing import Times

__all__ = [
    "Answer",
    "BatchProfile",
    "BreakEven",
    "Comparison",
    "Memory",
    "Plan",
    "Profile",
    "Setting",
    "SettingProfile",
    "Surroundings",
    "Times",
    "Work",
    "profile",
]
