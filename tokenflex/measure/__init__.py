"""Time, memory and work of one host with its parts, always beside the same host without them."""

from tokenflex.measure.break_even import BreakEven, Comparison
from tokenflex.measure.flops import Work
from tokenflex.measure.memory import Memory
from tokenflex.measure.plan import MeasuredSetting, Plan
from tokenflex.measure.result import AnswerProfile, BatchProfile, Profile, SettingProfile
from tokenflex.measure.run import profile
from tokenflex.measure.surroundings import Surroundings
from tokenflex.measure.timing import Times
from tokenflex.renamed import attributes

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

__getattr__ = attributes(
    __name__, {"Answer": "tokenflex.measure:AnswerProfile", "Setting": "tokenflex.measure:MeasuredSetting"}
)
