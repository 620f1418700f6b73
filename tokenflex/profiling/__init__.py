"""Time, memory and work of one host with its parts, always beside the same host without them."""

from tokenflex.profiling.break_even import BreakEven, Comparison
from tokenflex.profiling.flops import Work
from tokenflex.profiling.memory import Memory
from tokenflex.profiling.plan import MeasuredSetting, Plan
from tokenflex.profiling.result import AnswerProfile, BatchProfile, Profile, SettingProfile
from tokenflex.profiling.run import profile
from tokenflex.profiling.surroundings import Surroundings
from tokenflex.profiling.timing import Times

__all__ = [
    "AnswerProfile",
    "BatchProfile",
    "BreakEven",
    "Comparison",
    "MeasuredSetting",
    "Memory",
    "Plan",
    "Profile",
    "SettingProfile",
    "Surroundings",
    "Times",
    "Work",
    "profile",
]
