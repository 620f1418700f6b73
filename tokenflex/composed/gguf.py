"""Language models in one GGUF file, as llama.cpp keeps them: dequantised by transformers, then like any other."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenflex.errors import ConfigError

SUFFIX = ".gguf"


def is_gguf(name: Any) -> bool:
    """Whether a name is that of such a file: a path, or a repository's id and the file in it."""
    return isinstance(name, str) and name.lower().endswith(SUFFIX)


def language_model(name: str, dtype: torch.dtype | None = None) -> Any:
    """The model in a file, without the mark of its quantisation, so that it can be trained and saved.

    Args:
        name: ``folder/file.gguf``, or ``organisation/repository/file.gguf`` on the hub.
        dtype: of its parameters; None: float32.

    Raises:
        ConfigError: the package ``gguf`` isn't installed.
        OSError, ValueError: transformers can't read the file.
    """
    place = _place(name)
    with _damage_as_value_error():
        read = AutoModelForCausalLM.from_pretrained(**place, dtype=dtype or torch.float32)
    config: Any = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):  # only the outermost module is made anew; what is in it moves over
        plain = type(read)(config)
    for path, module in read.named_children():
        setattr(plain, path, module)
    plain.generation_config = read.generation_config
    return plain


def tokenizer(name: str) -> Any:
    """The tokenizer in a file.

    Args:
        name: as for `language_model`.

    Raises:
        ConfigError: the package ``gguf`` isn't installed.
        OSError, ValueError: transformers can't read it.
    """
    place = _place(name)
    with _damage_as_value_error():
        return AutoTokenizer.from_pretrained(**place)


@contextmanager
def _damage_as_value_error() -> Iterator[None]:
    """Within, whatever a reader stumbles over in a damaged file becomes a `ValueError`."""
    try:
        yield
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error!s:.300}") from error


def _place(name: str) -> dict[str, str]:
    if find_spec("gguf") is None:
        raise ConfigError(f'{name!r} is a GGUF file, for which gguf is needed: pip install "tokenflex[custom]".')
    where, _, file = name.rpartition("/")
    logging.getLogger("gguf").setLevel(logging.WARNING)
    return {"pretrained_model_name_or_path": where or ".", "gguf_file": file}
