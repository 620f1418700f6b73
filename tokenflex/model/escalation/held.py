"""``flex.escalate``: what was calibrated for a model, kept and saved with it."""

from typing import Any

from tokenflex.checkpoint import ESCALATE
from tokenflex.errors import ConfigError
from tokenflex.model.escalation.settings import Escalate


class Escalatable:
    """A model that remembers how its answers may escalate."""

    config: Any

    @property
    def escalate(self) -> Escalate | None:
        """What ``generate(escalate=True)`` uses; saved with the parts.

        Raises:
            ConfigError: it is set to something else than an `Escalate` with a threshold, or None.
        """
        if "_escalate" not in self.__dict__:
            saved = (getattr(self.config, "parts", None) or {}).get(ESCALATE)
            self.__dict__["_escalate"] = None if saved is None else Escalate.from_dict(saved)
        return self.__dict__["_escalate"]

    @escalate.setter
    def escalate(self, value: Escalate | None) -> None:
        if value is not None and (not isinstance(value, Escalate) or value.threshold is None):
            raise ConfigError(
                f"flex.escalate={value!r:.200}; expected an Escalate with a threshold, as tokenflex.calibrate() gives "
                "it, or None."
            )
        self.__dict__["_escalate"] = value
