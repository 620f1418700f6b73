"""A model's four parts under their own names: the policy can be exchanged, the others belong to what was trained."""

from typing import Any

from tokenflex import checkpoint, compressor
from tokenflex.compressor import Compressor
from tokenflex.contracts import Policy, Router, Scaler, Voter
from tokenflex.errors import ConfigError


class Assembled:
    """The parts of a model that has a ``compressor`` and the ``adapter`` of its host."""

    compressor: Compressor
    adapter: Any

    @property
    def scaler(self) -> Scaler:
        """What lays an image's tokens out at several levels."""
        return self.compressor.scaler

    @property
    def router(self) -> Router:
        """What looks at image and prompt tokens and votes."""
        return self.compressor.router

    @property
    def voter(self) -> Voter:
        """What adds the votes up to one score per level."""
        return self.compressor.voter

    @property
    def policy(self) -> Policy:
        """What picks the level; saved with the other parts.

        It is set to a registered name, to settings such as ``Budget(ratio=0.3)``, or to a policy.

        Raises:
            ConfigError: when it is set to something else, or to settings that allow none of the scaler's levels.
            UnknownComponentError: no policy has that name.
        """
        return self.compressor.policy

    @policy.setter
    def policy(self, value: Any) -> None:
        self.compressor.policy = self._made(value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "policy":
            object.__setattr__(self, name, value)  # a module would be taken for one of the model's own
        elif name in checkpoint.KINDS:
            raise ConfigError(
                f"flex.{name} can't be exchanged, since the other parts were built, and perhaps trained, for it. Make "
                f"another model over the same host: tokenflex.wrap(flex.host, {name}=...)."
            )
        else:
            super().__setattr__(name, value)

    def _made(self, policy: Any) -> Policy:
        if isinstance(policy, Policy):
            return policy
        parts, config = self.compressor, checkpoint.config_of("policy", policy)
        known = compressor.sizes(parts.scaler, parts.router, dim=self.adapter.dim, grid=self.adapter.grid)
        made: Policy = config.build(**known)
        weight = next(parts.parameters(), None)
        return made.train(parts.training).to(None if weight is None else weight.device)
