"""This process among others, and the device its model goes to."""

import os

import torch
from accelerate import Accelerator

from tokenflex.errors import ConfigError


def accelerator_of_run() -> Accelerator:
    """Accelerate's view of the processes, made sure to be lmms-eval's.

    Raises:
        ConfigError: accelerate doesn't know of processes that lmms-eval deals documents out to.
    """
    accelerator, started = Accelerator(), int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise ConfigError(
            f"WORLD_SIZE={started}, and accelerate knows of {accelerator.num_processes} process(es), so answers won't "
            "come together. On CPUs set ACCELERATE_USE_CPU=true beside torchrun."
        )
    return accelerator


def placement(wanted: str | None, given: torch.device, processes: int) -> str:
    """Where this process's model goes.

    Args:
        wanted: the setting; ``auto``: spread over all devices.
        given: what accelerate gives this process.

    Raises:
        ConfigError: several processes would share what was meant for one.
    """
    if wanted is None:
        return str(given)
    if processes > 1 and (wanted == "auto" or torch.device(wanted) not in (given, torch.device(given.type))):
        raise ConfigError(
            f"device={wanted} is for one process, and there are {processes}; leave it out, and each gets its own "
            f"(this one {given})."
        )
    return wanted if processes == 1 else str(given)
