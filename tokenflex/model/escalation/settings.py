"""``Escalate``: what an answer at a coarse level has to be for no finer one to be tried."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from tokenflex import registry
from tokenflex.contracts import ComponentConfig, Confidence
from tokenflex.contracts.levels import NAMED, read_levels
from tokenflex.contracts.numbers import integer, real
from tokenflex.errors import ConfigError, InputError

STARTS = ("coarsest", "router")
LOSSES = ("difference", "own")
NEVER = "never"
"""How an infinite threshold is written into files."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a threshold was found on; `tokenflex.calibrate` makes it.

    Attributes:
        threshold, risk, confidence: those of the `Escalate` that was made.
        rows: questions that it was calibrated on.
        loss: their mean loss, each question's counted as in `tokenflex.ops.risk.envelope`.
        settled: share of the questions that are settled before the finest level.
        of: ``"difference"`` from the finest level's answer, or ``"own"``: a function of the caller's.
        model: digest of the weights and settings that answers depend on.
        options: of ``generate``, by name.
    """

    threshold: float
    risk: float
    confidence: float
    rows: int
    loss: float
    settled: float
    of: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)

    def __post_init__(self) -> None:
        for name in ("threshold", "loss"):
            value = real(getattr(self, name))
            if value is None or math.isnan(value) or value == -math.inf:
                raise ConfigError(f"calibrated: {name}={getattr(self, name)!r:.200}; expected a number.")
        for name in ("risk", "confidence", "settled"):
            value = real(getattr(self, name))
            if value is None or not 0 <= value <= 1:
                raise ConfigError(f"calibrated: {name}={getattr(self, name)!r:.200}; expected a number from 0 to 1.")
        if not 0 <= (-1 if (rows := integer(self.rows)) is None else rows) < 2**63:
            raise ConfigError(f"calibrated: rows={self.rows!r:.200}; expected how many questions there were.")
        if self.of not in LOSSES:
            raise ConfigError(f"calibrated: of={self.of!r:.200}; expected one of {', '.join(map(repr, LOSSES))}.")
        if not isinstance(self.model, str) or not re.fullmatch(r"[0-9a-f]{32}", self.model):
            raise ConfigError(f"calibrated: model={self.model!r:.200}; expected a digest of 32 digits, 0 to f.")
        if not isinstance(self.options, Mapping) or not all(isinstance(name, str) for name in self.options):
            raise ConfigError(f"calibrated: options={self.options!r:.200}; expected options of generate by name.")

    @classmethod
    def from_dict(cls, data: Any) -> "Calibration":
        """Read what a file holds.

        Raises:
            ConfigError: a key is missing, or there is one too many, or a value can't be what calibration found.
        """
        entries = _known(cls, data, "a calibration")
        return cls(**{**entries, "threshold": math.inf if entries["threshold"] == NEVER else entries["threshold"]})


@dataclass(frozen=True, kw_only=True)
class Escalate:
    """Answer at a coarse level, and go on to finer ones where the language model is unsure.

    A row settles at the first level at which its confidence is at least ``threshold``; at the finest level it settles
    in any case. All images of a row go on together, each to the next level of the ladder that is above its own.

    Attributes:
        risk: how often, at most, an answer may be lost by not going on to the finest level; between 0 and 1.
        confidence: probability with which that holds, over the draw of the calibration questions.
        measure: name, or settings, of a `Confidence`.
        levels: of the ladder; the finest is always its last. None: all.
        start: ``"coarsest"``: every image starts at the ladder's first level, and the router never runs;
            ``"router"``: at the level that the router gives it.
        threshold: in the measure's unit; `tokenflex.calibrate` finds it, or it is set by hand and promises nothing.
            Infinite: everything is answered at the finest level.
        calibrated: how the threshold was found; None where it was set by hand.

    Raises:
        ConfigError: a value isn't one of these.
        UnknownComponentError: no measure has the name.
    """

    risk: float = 0.05
    confidence: float = 0.95
    measure: str | ComponentConfig = "first-margin"
    levels: tuple[int | str, ...] | None = None
    start: str = "coarsest"
    threshold: float | None = None
    calibrated: Calibration | None = None

    def __post_init__(self) -> None:
        for name in ("risk", "confidence"):
            value = real(getattr(self, name))
            if value is None or not 0 < value < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r:.200}; expected a number between 0 and 1, e.g. 0.05.")
            object.__setattr__(self, name, value)
        if self.start not in STARTS:
            raise ConfigError(f"start={self.start!r:.200}; use one of {', '.join(map(repr, STARTS))}.")
        if self.threshold is not None:
            value = real(self.threshold)
            if value is None or math.isnan(value) or value == -math.inf:
                raise ConfigError(f"threshold={self.threshold!r:.200}; expected a number, in the measure's unit.")
            object.__setattr__(self, "threshold", value)
        if self.levels is not None:
            object.__setattr__(self, "levels", _levels(self.levels))
        if self.calibrated is not None:
            self._require_own(self.calibrated)
        self.config  # noqa: B018 - an unknown measure is refused here

    def _require_own(self, calibrated: Any) -> None:
        held = ("threshold", "risk", "confidence")
        if not isinstance(calibrated, Calibration) or any(getattr(self, n) != getattr(calibrated, n) for n in held):
            raise ConfigError(
                "calibrated= holds what tokenflex.calibrate() found for another threshold, risk or confidence. "
                "Calibrate again, or leave it out: replace(escalate, calibrated=None, ...)."
            )

    @property
    def config(self) -> ComponentConfig:
        """Settings of the confidence that measures how sure an answer is."""
        if isinstance(self.measure, ComponentConfig):
            owner = getattr(type(self.measure), "owner", None)
            if owner is None or not issubclass(owner, Confidence):
                raise ConfigError(
                    f"measure={self.measure!r:.200} are settings of no confidence; see 'tokenflex plugins'."
                )
            return self.measure
        if not isinstance(self.measure, str):
            raise ConfigError(f"measure={self.measure!r:.200}; give the name of a confidence, or its settings.")
        return registry.confidences.get(self.measure).Config()

    def ladder(self, num_levels: int) -> tuple[int, ...]:
        """The levels to try, ascending; the finest is the last.

        Raises:
            InputError: there is no such level.
        """
        listed = range(num_levels) if self.levels is None else read_levels(self.levels, num_levels)
        assert not isinstance(listed, int)
        return tuple(sorted({*listed, num_levels - 1}))

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready data.

        Raises:
            ConfigError: the measure isn't registered, so its name couldn't be found again.
        """
        config = self.config
        name = registry.confidences.name_of(config.owner)
        if name is None:
            raise ConfigError(
                f"{config.owner.__name__} isn't registered as a confidence, so a saved file couldn't name it. Register "
                "it: an entry point in group 'tokenflex.confidences', or @tokenflex.confidences.register('a-name')."
            )
        found = {**asdict(self), "measure": {"name": name, "config": config.to_dict()}}
        for one in (found, found["calibrated"] or {}):
            one["threshold"] = NEVER if self.threshold == math.inf else self.threshold
        return json.loads(json.dumps(found))

    @classmethod
    def from_dict(cls, data: Any) -> "Escalate":
        """Read `to_dict`'s data.

        Raises:
            ConfigError: a key or a value isn't known, or the measure isn't installed.
        """
        entries = _known(cls, data, "an escalation")
        measure = entries["measure"]
        if not isinstance(measure, Mapping) or not isinstance(measure.get("name"), str):
            raise ConfigError(f"the measure {measure!r:.200} isn't described by a name and its settings.")
        kind = registry.confidences.get(measure["name"]).Config
        config = kind.from_dict(measure.get("config") or {})
        entries["measure"] = measure["name"] if config == kind() else config
        entries["threshold"] = math.inf if entries["threshold"] == NEVER else entries["threshold"]
        if entries["calibrated"] is not None:
            entries["calibrated"] = Calibration.from_dict(entries["calibrated"])
        return cls(**entries)


def _levels(levels: Any) -> tuple[int | str, ...]:
    if isinstance(levels, str | bytes) or not isinstance(levels, Sequence) or len(levels) == 0:
        raise ConfigError(f"levels={levels!r:.200}; expected the levels of the ladder, e.g. (0, 2, 4).")
    found = [one if isinstance(one, str) and one in NAMED else integer(one) for one in levels]
    if any(one is None for one in found):
        raise ConfigError(f"levels={levels!r:.200}; a level is an integer, 'coarsest' or 'finest'.")
    return tuple(one for one in found if one is not None)


def _known(kind: type, data: Any, what: str) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    if not isinstance(data, Mapping) or set(data) != names:
        raise ConfigError(
            f"{what} is described by {sorted(names)}, not by {data!r:.200}. The file was edited or written by another "
            "version of tokenflex."
        )
    return dict(data)


if TYPE_CHECKING:
    Allowed = Escalate | bool | None
else:
    Allowed = Any  # whatever comes is read here, and refused in this library's own words


def read(escalate: Allowed, saved: Escalate | None) -> Escalate | None:
    """What a call asks for; None where it asks for nothing.

    Args:
        escalate: settings with a threshold; True for those of the model; None or False.
        saved: those of the model.

    Raises:
        InputError: it is something else, or there is no threshold.
    """
    if escalate is None or escalate is False:
        return None
    if escalate is True:
        if saved is None:
            raise InputError(
                "escalate=True uses what was calibrated for this model, and nothing was. Set flex.escalate = "
                "tokenflex.calibrate(flex, tokenflex.Escalate(risk=0.05), batches), or pass Escalate(threshold=...)."
            )
        return saved
    if not isinstance(escalate, Escalate):
        raise InputError(
            f"escalate={escalate!r:.200} ({type(escalate).__name__}); use True or tokenflex.Escalate(...), e.g. "
            "Escalate(threshold=0.9)."
        )
    if escalate.threshold is None:
        raise InputError(
            "the threshold of this Escalate isn't known. Let tokenflex.calibrate(flex, escalate, batches) find it, "
            "or set one by hand: Escalate(threshold=...)."
        )
    return escalate
