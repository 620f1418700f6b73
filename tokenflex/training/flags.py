"""What training the parts changes of a host, besides nothing: its flags, put back afterwards."""

from typing import Any

from torch import nn

CACHE = "use_cache"


class HostFlags:
    """Which modules train, which parameters want gradients and whether caches are used, as found when this is made.

    Args:
        host: of the model that is about to be trained.
    """

    def __init__(self, host: nn.Module) -> None:
        self._modes = [(module, module.training) for module in host.modules()]
        self._wanted = [(parameter, parameter.requires_grad) for parameter in host.parameters()]
        config: Any = getattr(host, "config", None)
        self._config, self._cache = config, getattr(config, "__dict__", {}).get(CACHE, self)

    def restore(self) -> None:
        """Give the host back all flags that were changed."""
        for module, training in self._modes:
            module.training = training
        for parameter, wanted in self._wanted:
            parameter.requires_grad_(wanted)
        if self._config is None:
            return
        if self._cache is not self:
            setattr(self._config, CACHE, self._cache)
        elif CACHE in self._config.__dict__:
            delattr(self._config, CACHE)
