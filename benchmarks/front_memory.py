"""Memory of a `tokenflex.serving.Front` beside that of the whole model.

    python -m benchmarks.front_memory --size small --out benchmarks/results/front_memory.md

Saves a LLaVA-NeXT with random weights and fresh parts, loads it whole and as a front, each in a process of its own, and
makes the requests of one batch. ``small`` has the proportions of a small language model; what a front of a 7B model
holds is counted from its configuration, in bf16, without building it.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tokenflex
from benchmarks import report, sizes
from benchmarks.sizes import SIZES, Size

SETTINGS = ("whole", "front")
MEASURE = """
import json, sys, threading, time
import torch
from transformers import AutoModelForImageTextToText
import tokenflex
from tokenflex.serving import Front
import transformers.models.llava_next.modeling_llava_next, transformers.models.clip.modeling_clip
def held():
    lines = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
    return sum(int(lines[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))
before = peak = held()
def watch():
    global peak
    while True:
        peak = max(peak, held())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
torch.set_num_threads(1)
kind, folder, batch = sys.argv[1:]
start = time.perf_counter()
model = Front.from_pretrained(folder) if kind == "front" else AutoModelForImageTextToText.from_pretrained(folder).eval()
seconds = time.perf_counter() - start
inputs = torch.load(batch, weights_only=True)
requests = model.export(**inputs)
if kind == "whole":
    model.generate(**inputs, max_new_tokens=1, level=0)
flex = model.flex if kind == "front" else model
print(json.dumps({
    "parameters": sum(p.numel() * p.element_size() for p in flex.parameters()), "peak": peak - before,
    "seconds": seconds, "keys": [image.key for request in requests for image in request.images],
}))
"""


def measured(size: Size, seed: int, runs: int) -> dict[str, list[dict[str, Any]]]:
    """What loading and one batch of requests took, for the whole model and for a front, in turns.

    Raises:
        AssertionError: the front's requests aren't those of the whole model.
    """
    flex, batch = sizes.flex_model(size, seed).eval(), sizes.batch(size, seed)
    batch.pop("labels")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        model, inputs = Path(folder) / "model", Path(folder) / "batch.pt"
        flex.save_pretrained(model)
        torch.save(dict(batch), inputs)
        del flex
        for _ in range(runs):
            for name in SETTINGS:
                command = [sys.executable, "-c", MEASURE, name, str(model), str(inputs)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    keys = {tuple(run["keys"]) for runs_of in found.values() for run in runs_of}
    assert len(keys) == 1, f"requests differ: {keys}"
    return found


def counted(size: Size) -> dict[str, int]:
    """Bytes of the whole model's parameters and of a front's, by arithmetic."""
    with torch.device("meta"):
        flex: Any = tokenflex.wrap(sizes.host(sizes.on(size, "meta"), 0))
    host, parts = _bytes(flex.host), _bytes(flex.compressor)
    left_out = _bytes(flex.host.model.language_model.layers) + _bytes(flex.host.lm_head)
    return {"whole": host + parts, "front": host + parts - left_out, "parts": parts}


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def page(data: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Memory of a front beside the whole model",
        "",
        f"{data['date']}; {data['hardware']}; {report.versions(data)}; `{data['command']}`.",
        "",
        "A front has the vision tower, the projector, the word embeddings and the parts; not the language model's",
        "layers and head. Peak: resident memory above what the process held after its imports, through loading, the",
        f"requests of one batch of {data['batch']} images and, for the whole model, one coarse token for each",
        "(weights that nobody uses are only mapped, not read); float32, one thread; least and greatest of",
        f"{data['runs']} runs. Both made the same requests.",
        "",
        "| | parameters, MiB | peak, MiB | seconds to load |",
        "|---|---|---|---|",
    ]
    for name in SETTINGS:
        runs = data["measured"][name]
        lines.append(
            f"| {name} | {runs[0]['parameters'] / 2**20:.0f} | {_span([run['peak'] / 2**20 for run in runs], 0)} | "
            f"{_span([run['seconds'] for run in runs], 2)} |"
        )
    whole, front, parts = (data["counted_7b"][name] / 2**30 for name in ("whole", "front", "parts"))
    lines += [
        "",
        f"LLaVA-NeXT on Vicuna 7B, counted from its configuration (bf16, parts in float32): whole {whole:.2f} GiB, "
        f"front {front:.2f} GiB, of which the parts are {parts:.2f} GiB.",
        "",
    ]
    return "\n".join(lines)


def _span(values: list[float], digits: int) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def main(argv: list[str] | None = None) -> int:
    """Measure and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small"), default="small", help="tiny only shows that it runs")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="write one JSON object and nothing else")
    parser.add_argument("--out", type=Path, help="Markdown file to write as well")
    options = parser.parse_args(argv)
    report.quiet()
    size = SIZES[options.size]
    data = {
        "date": str(datetime.date.today()),
        "command": " ".join(["python -m benchmarks.front_memory", *(sys.argv[1:] if argv is None else argv)]),
        "batch": size.batch,
        "runs": options.runs,
        "measured": measured(size, options.seed, options.runs),
        "counted_7b": counted(SIZES["7b"]),
        **report.surroundings("cpu"),
    }
    written = page(data)
    report.keep(options.out, written, data)
    sys.stdout.write(f"{json.dumps(data) if options.json else written}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
