"""What transformers asks of a model that contains another: to be loaded, saved, cast and tied as the host is."""

import copy
import os
import tempfile
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel

from tokenflex import checkpoint, loadable
from tokenflex.errors import ConfigError
from tokenflex.hosts import stock
from tokenflex.hosts.turns import say_what_is_read
from tokenflex.model import peft_hosts, saving
from tokenflex.model.assembly import Assembled
from tokenflex.model.continuous import TextBatching
from tokenflex.model.escalation.held import Escalatable
from tokenflex.model.host_weights import HostWeights


class Hosting(Assembled, Escalatable, TextBatching, HostWeights, GenerationMixin):
    """A transformers model around a host and its parts, before it is known how they are called (`FlexModel`)."""

    @property
    def _inner(self) -> str:
        """Path of the transformers model: the host, or what its wrapper wraps."""
        base = stock.base_of(self.host)
        return next(name for name, module in self.named_modules() if module is base)

    @property
    def _wraps(self) -> bool:
        """Whether the host is a wrapper around a transformers model, such as PEFT's."""
        return not isinstance(self.host, PreTrainedModel)

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
            ConfigError: a file of the folder is damaged, tensors are missing, have no place or another kind of number
                than the model, weights aren't finite, those of the parts aren't the ones that were saved, or the folder
                holds parts only.
        """
        source = pretrained_model_name_or_path
        saving.refuse_parts(source)
        asked = kwargs.pop("output_loading_info", False)
        kind: Any = cls.config_class
        entries = loadable.first_look(source, kwargs, kind.model_type)
        with loadable.in_our_words(source):
            made: Any = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        flex, info = made
        saving.require_complete(flex, info, source)
        saving.require_as_saved(flex, entries, source)
        stock.base_of(flex.host).generation_config = copy.deepcopy(flex.generation_config)
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

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write host and parts as one transformers model.

        Weights keep the names they have in memory, so that a training checkpoint can be resumed; ask for
        ``save_original_format=True`` to give the host's the names of its original release.

        Raises:
            ConfigError: a part isn't registered under a name, or the host wouldn't come back as it is: adapters other
                than LoRA, modules its configuration doesn't describe, quantisation that can't be saved.
            WriteError: the folder can't be written, as on a full disk; a model that was there is still there.
        """
        reason = peft_hosts.refusal(self.host)
        if reason is not None:
            raise ConfigError(f"the host can't be saved in one with its parts: {reason}. {saving.APART}")
        self.config.parts = self._described()
        self.config.adapters = peft_hosts.describe(self.host)
        saving.require_loadable(self, kwargs.get("state_dict"))
        kwargs.setdefault("save_original_format", False)
        first, uploads = kwargs.get("is_main_process", True), kwargs.get("push_to_hub", False)
        digested = saving.with_digest(self, kwargs.get("state_dict"))
        with saving.as_quantised(self), digested, saving.place(save_directory, first, uploads) as folder:
            super().save_pretrained(folder, **kwargs)
            if first:
                saving.explain(self, folder)

    def _upload_modified_files(self, working_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As transformers' own, with this model's card instead of the empty one that was put there just before."""
        saving.explain(self, working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: saved folders name this package, and the files of this class aren't copied into them."""

    def save_parts(self, folder: str | os.PathLike[str]) -> None:
        """Write ``tokenflex.json`` and ``tokenflex.safetensors``; the host is not saved.

        Raises:
            ConfigError: a part isn't registered under a name.
        """
        checkpoint.save_parts(folder, self.compressor, self.adapter, more=self._more())

    def push_parts_to_hub(self, repo_id: str, **options: Any) -> str:
        """Put what `save_parts` writes into a repository on the model hub, which is made if there is none.

        Args:
            repo_id: ``user/name``.
            options: of ``huggingface_hub.HfApi.upload_folder``, such as ``commit_message`` and ``revision``, and
                ``private`` and ``token``.

        Returns:
            The address of the commit.

        Raises:
            ConfigError: a part isn't registered under a name, or the hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_parts(folder)
            return saving.upload(folder, repo_id, options)

    def _described(self) -> checkpoint.Spec:
        """The parts and, where it is known, how answers may escalate."""
        return {**checkpoint.describe(self.compressor, self.adapter), **self._more()}

    def _more(self) -> dict[str, Any]:
        allowed = self.escalate
        return {} if allowed is None else {checkpoint.ESCALATE: allowed.to_dict()}
