"""The old name of `tokenflex.profiling`, for one more version."""

from tokenflex.renamed import attributes

_NAMES = (
    "AnswerProfile", "BatchProfile", "BreakEven", "Comparison", "MeasuredSetting", "Memory", "Plan", "Profile",
    "SettingProfile", "Surroundings", "Times", "Work", "profile",
)  # fmt: skip
_OLDER = {"Answer": "tokenflex.profiling:AnswerProfile", "Setting": "tokenflex.profiling:MeasuredSetting"}

__getattr__ = attributes(__name__, {**{name: f"tokenflex.profiling:{name}" for name in _NAMES}, **_OLDER})
