"""What transformers asks of a model that contains another: to be loaded, saved, cast and tied as the host is."""

import os
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from tokenflex import checkpoint
from tokenflex.compressor import Compressor
from tokenflex.contracts import HostAdapter
from tokenflex.errors import ConfigError
from tokenflex.hosts import stock
from tokenflex.hosts.turns import say_what_is_read
from tokenflex.model import peft_hosts, saving
from tokenflex.model.continuous import TextBatching
from tokenflex.model.escalation.held import Escalatable


class Hosting(Escalatable, TextBatching, PreTrainedModel, GenerationMixin):
    """A transformers model around a host and its parts, before it is known how they are called (`FlexModel`)."""

    host: Any
    adapter: HostAdapter
    compressor: Compressor

    @property
    def _inner(self) -> str:
        """Path of the transformers model: the host, or what its wrapper wraps."""
        base = stock.base_of(self.host)
        return next(name for name, module in self.named_modules() if module is base)

    @property
    def _wraps(self) -> bool:
        """Whether the host is a wrapper around a transformers model, such as PEFT's."""
        return not isinstance(self.host, PreTrainedModel)

    def init_weights(self) -> None:
        """Nothing: host and parts initialised themselves when they were built, and may have been trained since."""

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing, for the same reason; modules of the host that a file lacks are left to the host."""

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """As the host ties them; inside a wrapper, what is tied already."""
        if self._wraps:
            kwargs["recompute_mapping"] = False
        super().tie_weights(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own, except that a model is loaded as it was saved or not at all.

        Args:
            kwargs: all that transformers takes. Parts are never quantised.

        Raises:
            ConfigError: tensors are missing or have no place, or weights of the parts aren't finite.
        """
        asked = kwargs.pop("output_loading_info", False)
        made: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        flex, info = made
        saving.require_complete(flex, info, pretrained_model_name_or_path)
        stock.base_of(flex.host).generation_config = flex.generation_config
        say_what_is_read(flex.adapter, flex.compressor.router)
        return (flex, info) if asked else flex

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own.

        Raises:
            ConfigError: it would cast a quantised host.
        """
        dtype = torch._C._nn._parse_to(*args, **kwargs)[1]  # pyright: ignore[reportAttributeAccessIssue]
        if dtype is not None:
            saving.require_castable(self)
        return super().to(*args, **kwargs)

    def half(self, *args: Any) -> Any:
        """As transformers' own; see `to`."""
        saving.require_castable(self)
        return super().half(*args)

    def float(self, *args: Any) -> Any:
        """As transformers' own; see `to`."""
        saving.require_castable(self)
        return super().float(*args)

    def bfloat16(self) -> Any:
        """As torch's own; see `to`."""
        saving.require_castable(self)
        return super().bfloat16()

    def get_input_embeddings(self) -> nn.Module:
        """The host's."""
        return self.host.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """The host's."""
        self.host.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The host's."""
        return self.host.get_output_embeddings()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write host and parts as one transformers model.

        Weights keep the names they have in memory, so that a training checkpoint can be resumed; ask for
        ``save_original_format=True`` to give the host's the names of its original release.

        Raises:
            ConfigError: a part isn't registered under a name, or the host wouldn't come back as it is: adapters other
                than LoRA, modules its configuration doesn't describe, quantisation that can't be saved.
        """
        reason = peft_hosts.refusal(self.host)
        if reason is not None:
            raise ConfigError(f"the host can't be saved in one with its parts: {reason}. {saving.APART}")
        self.config.parts = self._described()
        self.config.adapters = peft_hosts.describe(self.host)
        saving.require_loadable(self, kwargs.get("state_dict"))
        kwargs.setdefault("save_original_format", False)
        with saving.as_quantised(self):
            super().save_pretrained(save_directory, **kwargs)

    def save_parts(self, folder: str | os.PathLike[str]) -> None:
        """Write ``tokenflex.json`` and ``tokenflex.safetensors``; the host is not saved.

        Raises:
            ConfigError: a part isn't registered under a name.
        """
        checkpoint.save(folder, self._described(), self.compressor.state_dict())

    def _described(self) -> checkpoint.Spec:
        """The parts and, where it is known, how answers may escalate."""
        allowed = self.escalate
        spec = checkpoint.describe(self.compressor, self.adapter)
        return spec if allowed is None else {**spec, checkpoint.ESCALATE: allowed.to_dict()}
