"""Whether tiny hosts are served on a device, by type and by attention implementation, beside the plain host there.

    python -m benchmarks.gpu_checks --out checks.md                       # bfloat16, on CUDA if there is any
    python -m benchmarks.gpu_checks --hosts internvl --attention sdpa     # one of them

Every row is written as it is known. At the finest level logits and ids are compared with the plain host's, on the same
device, in the same type, with the same implementation; other levels have to give finite logits of the right length.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tokenflex
from benchmarks import report, sizes
from tokenflex.hosts import varlen
from tokenflex.model import FlexModel
from tokenflex.tables.hosts import architectures, refusal
from tokenflex.testing.host_bench import LEVELS as MIXED
from tokenflex.testing.host_bench import ROWS
from tokenflex.testing.zoo.hosts import ZOO

HOSTS = ("llava_next", "llava", "llava_onevision", "internvl", "qwen2_5_vl", "qwen3_vl", "mistral3", "idefics3",
         "gemma3", "glm4v")  # fmt: skip
"""One or two of every family of hosts."""
WIDE = "llava_next, heads of 64"
"""What flex_attention on CUDA asks for: the other hosts' heads have 8 to 12 entries."""
ATTENTION = ("sdpa", "varlen", "flash_attention_2", "eager", "flex_attention")
"""What is compiled first comes last."""
LEVELS = {"coarsest": 0, "finest": -1, "mixed": MIXED, "routed": None}
CALLS = ("forward", "generate", "decide")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Of logits, by the greatest of the plain host's."""
NEW = 3


@dataclass(frozen=True)
class Row:
    """One host with one implementation.

    Attributes:
        outcome: ``passed``, ``refused`` where the plain host itself doesn't take it, or ``failed``.
        detail: why not; for a failure call and level too.
        checks: how many calls were looked at.
    """

    host: str
    attention: str
    dtype: str
    outcome: str
    detail: str = ""
    checks: int = 0


def row(host: str, attention: str, dtype: torch.dtype, device: str) -> Row:
    """One host with one implementation."""
    named: dict[str, Any] = {"host": host, "attention": attention, "dtype": str(dtype).removeprefix("torch.")}
    reason = _missing(attention, device)
    if host != WIDE and reason is None:
        reason = refusal(host) if host in architectures() else "this transformers doesn't know it"
    if reason is not None:
        return Row(outcome="refused", detail=reason, **named)
    flex, inputs = built(host, dtype, device)
    with _eagerly(attention, device), torch.no_grad():
        return Row(**named, **_checked(flex, inputs, attention, dtype))


@cache
def built(host: str, dtype: torch.dtype, device: str) -> tuple[FlexModel, dict[str, Any]]:
    """A tiny host with its parts, and a batch."""
    if host == WIDE:
        text = {**sizes.SMALL.text, "num_hidden_layers": 2, "vocab_size": 2100}
        vision = {**sizes.SMALL.vision, "num_hidden_layers": 3}
        size = replace(sizes.SMALL, vision=vision, text=text, dtype=dtype, device=device, answers=2)
        flex, inputs = sizes.flex_model(size, 0), sizes.batch(size, 0)
        inputs.pop("labels")
        return flex.eval(), inputs
    tiny = ZOO[host]
    model = tiny.build().to(device, dtype)
    torch.manual_seed(0)
    flex = tokenflex.wrap(model, router="avg", voter="position-weighted").to(device).eval()
    made = tiny.batch(model.config, ROWS)
    return flex, {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in made.items()}


def _checked(flex: FlexModel, inputs: dict[str, Any], attention: str, dtype: torch.dtype) -> dict[str, Any]:
    """Outcome, detail and number of checks."""
    host, asked = flex.host, {**inputs, "max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    try:
        host.set_attn_implementation(varlen.register() if attention == varlen.NAME else attention)
        plain = {"logits": host(**inputs).logits, "ids": host.generate(**asked)}
    except Exception as error:
        return {"outcome": "refused", "detail": f"the plain host raises {_short(error)}"}
    done, images = 0, len(flex.decide(**inputs, level=0))
    for call in CALLS:
        for name, level in LEVELS.items():
            try:
                levels = [MIXED[i % len(MIXED)] for i in range(images)] if level is MIXED else level
                _CHECKS[call](flex, asked if call == "generate" else inputs, levels, plain, dtype)
            except Exception as error:
                return {"outcome": "failed", "detail": f"{call}, {name}: {_short(error)}", "checks": done}
            done += 1
    return {"outcome": "passed", "checks": done}


def _forward(flex: FlexModel, inputs: Mapping[str, Any], level: Any, plain: Mapping[str, Tensor], dtype: Any) -> None:
    output = flex(**inputs, level=level)
    assert output.logits.device == plain["logits"].device, f"logits are on {output.logits.device}"
    assert output.logits.dtype == plain["logits"].dtype, f"logits are {output.logits.dtype}"
    assert bool(output.logits.isfinite().all()), "logits aren't finite"
    if level == -1:
        off = (output.logits - plain["logits"]).abs().max().item()
        limit = TOLERANCE[dtype] * max(1.0, plain["logits"].abs().max().item())
        assert off <= limit, f"logits differ from the plain host's by {off:.3g}, {limit:.3g} is allowed"
    elif level == 0:
        assert output.logits.shape[1] < plain["logits"].shape[1], "the prompt is no shorter than the host's"


def _generate(flex: FlexModel, inputs: Mapping[str, Any], level: Any, plain: Mapping[str, Tensor], dtype: Any) -> None:
    ids = flex.generate(**inputs, level=level)
    prompt = inputs["input_ids"]
    assert torch.equal(ids[:, : prompt.shape[1]], prompt), "the prompt's ids changed"
    assert ids.shape == plain["ids"].shape, f"ids are {tuple(ids.shape)}, the host's {tuple(plain['ids'].shape)}"
    assert level != -1 or torch.equal(ids, plain["ids"]), "ids differ from the plain host's"


def _decide(flex: FlexModel, inputs: Mapping[str, Any], level: Any, plain: Mapping[str, Tensor], dtype: Any) -> None:
    for decision in flex.decide(**inputs, level=level):
        assert 0 < decision.tokens <= decision.of, f"{decision.tokens} of {decision.of} tokens"
        assert decision.scores is None or bool(decision.scores.isfinite().all()), "scores aren't finite"


_CHECKS: Mapping[str, Callable[..., None]] = {"forward": _forward, "generate": _generate, "decide": _decide}


def _missing(attention: str, device: str) -> str | None:
    """Why an implementation can't be tried here."""
    if attention == "flash_attention_2" and find_spec("flash_attn") is None:
        return "flash-attn isn't installed"
    if attention == "flash_attention_2" and device != "cuda":
        return "needs a CUDA device"
    return None


def _eagerly(attention: str, device: str) -> AbstractContextManager[Any]:
    """flex_attention uncompiled on the CPU, where compiling it takes minutes."""
    if attention == "flex_attention" and device != "cuda":
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())[:160]
    return text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"


def page(rows: Sequence[Row], told: Mapping[str, Any]) -> str:
    """One line per host and implementation, failures first."""
    order = ("failed", "passed", "refused")
    lines = [
        "# Hosts on a device",
        "",
        f"{told['hardware']}; {report.versions(told)}. "
        + ", ".join(f"{sum(row.outcome == name for row in rows)} {name}" for name in order)
        + f" of {len(rows)}.",
        "",
        (__doc__ or "").strip().split("\n\n")[-1].replace("\n", " "),
        "",
        "| host | attention | type | outcome | calls | why |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: order.index(row.outcome)):
        detail = row.detail.replace("|", "/")
        lines.append(f"| {row.host} | {row.attention} | {row.dtype} | {row.outcome} | {row.checks} | {detail} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Check, write as rows come, and exit with 1 if any failed."""
    options = _options(argv)
    report.quiet()
    told = report.surroundings(options.device)
    rows: list[Row] = []
    # sdpa of every host comes before the next implementation of any.
    for attention in options.attention:
        for host in options.hosts:
            rows.append(row(host, attention, getattr(torch, options.dtype), options.device))
            sys.stderr.write(f"{rows[-1].host}, {rows[-1].attention}: {rows[-1].outcome} {rows[-1].detail}\n")
            report.keep(options.out, page(rows, told), {"rows": [asdict(row) for row in rows], **told})
    sys.stdout.write(page(rows, told))
    sys.exit(any(row.outcome == "failed" for row in rows))


def _options(argv: list[str] | None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", nargs="+", choices=(*sorted(ZOO), WIDE), default=(*HOSTS, WIDE), metavar="HOST")
    parser.add_argument("--attention", nargs="+", choices=ATTENTION, default=ATTENTION, metavar="NAME")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--out", type=Path, help="Markdown file to write; JSON goes beside it")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
