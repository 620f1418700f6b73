"""Embeddings, kernels and first values of weights: a `FlexModel` answers for its host where transformers asks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from tokenflex import checkpoint
from tokenflex.compressor import Compressor
from tokenflex.contracts import HostAdapter
from tokenflex.hosts import stock


@contextmanager
def in_float32() -> Iterator[None]:
    """Within, modules are built in float32, whatever type transformers builds the host in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Preparation:
    """The host's ``prepare_inputs_for_generation``, looked up on an instance; transformers' own, on the class.

    What is set on an instance, as PEFT's prompt learning does, goes before it.
    """

    def __get__(self, instance: Any, owner: type) -> Any:
        """The method; of the transformers model where the host is a wrapper around one."""
        there = None if instance is None else instance.__dict__["_modules"].get("host")
        if there is None:
            plain = vars(GenerationMixin)["prepare_inputs_for_generation"]
            return plain if instance is None else plain.__get__(instance, owner)
        return stock.base_of(there).prepare_inputs_for_generation


class HostWeights(PreTrainedModel):
    """What is asked of the host's embeddings and of weights that were never set."""

    host: Any
    adapter: HostAdapter
    compressor: Compressor
    _being_built = False
    prepare_inputs_for_generation = Preparation()

    def post_init(self) -> None:
        """As transformers' own, but no weight is initialised: host and parts have done so when they were built."""
        self._being_built = True
        try:
            super().post_init()
        finally:
            self._being_built = False
        self._keep_parts_in_float32()
        self.parts_made = getattr(self, "parts_made", False) or not _is_nowhere(self.compressor)

    def _keep_parts_in_float32(self) -> None:
        """Name the parts, as far as they have weights: in one list for the half types, in the other for quantisation.

        transformers allows no name in both, so one holds all parts together and the other each by itself.
        """
        weighty = {f"compressor.{name}" for name, part in self.compressor.named_children() if part.state_dict()}
        plain, strict = set(self._keep_in_fp32_modules or ()), set(self._keep_in_fp32_modules_strict or ())
        self._keep_in_fp32_modules = plain | weighty
        self._keep_in_fp32_modules_strict = strict - {"compressor"} | ({"compressor"} if weighty else set())

    def init_weights(self) -> None:
        """Initialise what has no values yet, as after ``to_empty``; the host's own ``init_weights``, and fresh parts.

        What was built, loaded or trained keeps its values.
        """
        if self._being_built:
            return
        stock.base_of(self.host).init_weights()
        if not self.parts_made:
            self._fill_parts()
        self.tie_weights(recompute_mapping=False)

    @torch.no_grad()
    def _fill_parts(self) -> None:
        with in_float32():
            fresh = checkpoint.assemble(self.config.parts, self.adapter)
        values: dict[str, Any] = dict(fresh.named_parameters()) | dict(fresh.named_buffers())
        for name, tensor in [*self.compressor.named_parameters(), *self.compressor.named_buffers()]:
            tensor.copy_(values[name])
        self.parts_made = True

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing, since parts initialise themselves; modules of the host that a file lacks are left to the host."""

    def get_input_embeddings(self) -> nn.Module:
        """The host's table of word embeddings."""
        return self.host.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Give the host another table of word embeddings."""
        self.host.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The host's head, which makes logits of hidden states."""
        return self.host.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Give the host another head."""
        stock.base_of(self.host).set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """The host's vocabulary gets another size, as by the host's own method; the parts have none.

        Args:
            args, kwargs: as of the host's method.

        Returns:
            The host's input embeddings.
        """
        base = stock.base_of(self.host)
        embeddings = base.resize_token_embeddings(*args, **kwargs)
        if hasattr(base, "vocab_size"):
            self.vocab_size = base.vocab_size
        return embeddings

    def set_attn_implementation(self, attn_implementation: str | dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """The host's kernels of attention; this model has none of its own.

        Args:
            attn_implementation: for the whole host, or by the name of its sub-configurations, ``""`` for itself, as
                for the host's own method; what stands under ``"host"`` is handed to the host.
            args, kwargs: as of the host's method.

        Raises:
            ValueError: the host has no such kernels.
        """
        implementation = attn_implementation
        if isinstance(implementation, dict) and "host" in implementation:
            implementation = implementation["host"]
        stock.base_of(self.host).set_attn_implementation(implementation, *args, **kwargs)


def _is_nowhere(parts: nn.Module) -> bool:
    """Whether parts were built without values, on torch's ``meta`` device."""
    return any(tensor.device.type == "meta" for tensor in [*parts.parameters(), *parts.buffers()])
