"""The device that a command's ``--device`` means."""

import os


def device(name: str) -> str:
    """``cpu``, or the process's own CUDA device.

    Raises:
        ConfigError: there is none.
    """
    import torch

    from tokenflex.errors import ConfigError

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu.")
    if name == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
