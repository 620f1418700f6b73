"""What `tests/model/test_compiling.py` looks at, found in a process without shape checks: they are no part of a graph.

Run as ``python -m tests.model.compiled [inductor]``; writes one JSON object to standard output.
"""

import copy
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

import tokenflex
from tokenflex.contracts import Grid, Instruction, VisualTokens
from tokenflex.errors import InputError
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.testing.zoo.hosts import ZOO
from tokenflex.testing.zoo.recipe import AN_IMAGE

TINY = ZOO["llava_next"]
BATCHES = (
    ((1, 2, AN_IMAGE, 3, 4),),
    ((AN_IMAGE, 9, 10, AN_IMAGE, 11, 12),),
    ((1, 2, AN_IMAGE, 3), (4, 5, 6, 7, 8), (AN_IMAGE, 9, 10, AN_IMAGE, 11, 12)),
    ((1, 2, 3, 4, 5, AN_IMAGE, 3), (AN_IMAGE, 9)),
    ((5, AN_IMAGE, 6), (AN_IMAGE, 1, 2, AN_IMAGE, 3, AN_IMAGE, 4)),
)
"""Images of one and more tiles, one and more of them, with words more and fewer."""


def model(seed=0):
    torch.manual_seed(seed)
    scaler = AveragePoolScaler.Config(windows=((4, 4), (2, 2), (1, 1)))
    return tokenflex.wrap(TINY.build(), scaler=scaler, router="avg", voter="position-weighted").eval()


def batches(flex):
    return [TINY.batch(flex.host.config, rows) for rows in BATCHES]


def told(flex, inputs):
    return [(d.level, d.scores.tolist()) for d in flex.decide(**inputs)]


def requests(flex):
    """Decisions and ids of requests of many shapes, compiled and not, and how many graphs that took."""
    backend = CompileCounterWithBackend("eager")
    found = {"plain": [told(flex, inputs) for inputs in batches(flex)]}
    plain = [flex.generate(**inputs, max_new_tokens=3).tolist() for inputs in batches(flex)]
    counters.clear()
    flex.compile(backend=backend)
    found["compiled"] = [told(flex, inputs) for inputs in batches(flex)]
    found["graphs"] = backend.frame_count
    found["same ids"] = plain == [flex.generate(**inputs, max_new_tokens=3).tolist() for inputs in batches(flex)]
    found["again"] = backend.frame_count
    static = {"max_new_tokens": 3, "cache_implementation": "static"}
    ours = flex.generate(**batches(flex)[0], **static, level=-1)
    found["same with a static cache"] = torch.equal(ours, flex.host.generate(**batches(flex)[0], **static))
    found["breaks"] = sum(counters["graph_break"].values())
    return found


def state(flex):
    """What saving and copying see, and what is left after undoing."""
    names = list(flex.state_dict())
    backend = CompileCounterWithBackend("eager")
    found = {"returned": flex.compile(backend=backend), "same names": list(flex.state_dict()) == names}
    found["host"] = any(module._compiled_call_impl is not None for module in flex.host.modules())
    inputs = batches(flex)[0]
    expected = told(flex, inputs)
    graphs = backend.frame_count
    with tempfile.TemporaryDirectory() as folder:
        flex.save_parts(Path(folder))
        found["loaded"] = told(tokenflex.load_parts(folder, host=flex.host), inputs) == expected
    twin = copy.deepcopy(flex.compressor)
    with torch.no_grad():
        encoded = flex.encode(inputs)
        found["copied"] = torch.equal(twin.scores(encoded.images, encoded.instructions), flex.scores(encoded))
    flex.compile(disable=True)
    told(flex, batches(flex)[2])
    found["graphs of copies, and after undoing"] = backend.frame_count - graphs
    return found


def training(flex):
    """Gradients of router and voter."""
    flex.compressor.train()
    for module in flex.compressor.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.MultiheadAttention):
            setattr(module, "p" if isinstance(module, torch.nn.Dropout) else "dropout", 0.0)
    inputs, seen = batches(flex)[2], []
    for backend in (None, "aot_eager"):
        if backend:
            flex.compile(backend=backend)
        flex.zero_grad()
        flex.scores(flex.encode(inputs)).square().sum().backward()
        seen.append({n: p.grad.clone() for n, p in flex.compressor.named_parameters() if p.grad is not None})
    plain, ours = seen
    off = max(float((plain[name] - ours[name]).abs().max() / plain[name].abs().max().clamp(min=1e-9)) for name in plain)
    return {"with gradients": len(plain), "same": plain.keys() == ours.keys(), "off": off}


def refusals(flex):
    """An image that can't be judged."""
    flex.compile(backend="eager")
    inputs = batches(flex)[0]
    inputs["pixel_values"][0, 0, 0, 0, 0] = float("nan")
    try:
        flex.decide(**inputs)
    except InputError as error:
        return {"said": str(error)}
    return {"said": ""}


def grids(flex):
    """More grids than graphs are allowed."""
    torch._dynamo.config.recompile_limit = 2
    backend = CompileCounterWithBackend("eager")
    words = [Instruction(torch.randn(4, 32), torch.ones(4, dtype=torch.bool))]
    seen = [[VisualTokens(torch.randn(2, side * side, 32), Grid(side, side))] for side in (4, 6, 8, 10, 12)]
    with torch.no_grad():
        plain = [flex.compressor.scores(images, words) for images in seen]
        flex.compile(backend=backend)
        ours = [flex.compressor.scores(images, words) for images in seen]
    off = max(float((one - other).abs().max()) for one, other in zip(plain, ours, strict=True))
    return {"graphs": backend.frame_count, "off": off}


def operators(flex):
    """Operators that deciding runs, before and after."""
    inputs, found = batches(flex)[0], {}
    with torch.no_grad():
        for name in ("plain", "compiled"):
            if name == "compiled":
                flex.compile()
            encoded = [flex.encode(inputs) for _ in range(3)]
            for each in encoded[:2]:
                scores = flex.scores(each)
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                flex.scores(encoded[2])
            found[name] = sum(event.name.startswith("aten::") for event in seen.events())
            found[f"{name} scores"] = scores.tolist()
    return found


def main():
    torch.set_num_threads(1)
    kinds = (operators,) if sys.argv[1:] == ["inductor"] else (requests, state, training, refusals, grids)
    found = {}
    for kind in kinds:
        torch._dynamo.reset()
        start = time.perf_counter()
        found[kind.__name__] = kind(model())
        sys.stderr.write(f"{kind.__name__}: {time.perf_counter() - start:.1f} s\n")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
