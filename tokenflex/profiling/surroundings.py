"""Where it was measured: device, kernel, type and versions, all of which vanilla host and parts share."""

import datetime
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

import tokenflex
from tokenflex.hosts import stock
from tokenflex.model import FlexModel


@dataclass(frozen=True)
class Surroundings:
    """What a time is worth nothing without.

    Attributes:
        host: class of the host, inside a PEFT wrapper too.
        parameters: of the host.
        parts: class of scaler, router, voter and policy.
        device: ``cpu`` or ``cuda:0``.
        device_name: of the GPU, or of the processor with its number of cores.
        dtype: of the host's weights; several where they differ.
        parts_dtype: of router and voter; empty where they have no weights.
        attention: the implementations that the host's models are set to, e.g. ``("sdpa",)``.
        threads: of torch on the CPU.
        date: in UTC.
    """

    host: str
    parameters: int
    parts: dict[str, str]
    device: str
    device_name: str
    dtype: tuple[str, ...]
    parts_dtype: tuple[str, ...]
    attention: tuple[str, ...]
    threads: int
    torch: str
    transformers: str
    tokenflex: str
    python: str
    date: str

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready data."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def of(flex: FlexModel) -> Surroundings:
    """Read where a model is measured, from its device, its weights and the libraries installed."""
    parts = flex.compressor
    return Surroundings(
        host=type(stock.base_of(flex.host)).__name__,
        parameters=sum(p.numel() for p in flex.host.parameters()),
        parts={kind: type(getattr(parts, kind)).__name__ for kind in ("scaler", "router", "voter", "policy")},
        device=str(flex.device),
        device_name=_device_name(flex.device),
        dtype=_types(flex.host),
        parts_dtype=_types(parts),
        attention=attention_of(flex.host),
        threads=torch.get_num_threads(),
        date=_today(),
        **_versions(),
    )


def provenance(device: torch.device, command: str) -> dict[str, Any]:
    """How results are made here and now, JSON-ready, for pages to say.

    Args:
        command: as it was typed; empty where results are made from Python.
    """
    names = [_device_name(device)]
    if device.type != "cpu":
        names.append(_device_name(torch.device("cpu")))
    return {
        "command": command,
        "date": _today(),
        "device": str(device),
        "hardware": "; ".join(names),
        "threads": torch.get_num_threads(),
        **_versions(),
    }


def attention_of(host: torch.nn.Module) -> tuple[str, ...]:
    """The attention implementations in force in a host's models, sorted."""
    found = {m.config._attn_implementation for m in host.modules() if isinstance(m, PreTrainedModel)}
    return tuple(sorted(str(name) for name in found))


def _versions() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenflex": tokenflex.__version__,
        "python": platform.python_version(),
    }


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _types(module: torch.nn.Module) -> tuple[str, ...]:
    return tuple(sorted({str(p.dtype).removeprefix("torch.") for p in module.parameters()}))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"
