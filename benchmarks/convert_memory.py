"""Peak memory of ``tokenflex convert`` against the size of the source's shards.

    python benchmarks/convert_memory.py --layers 8 --hidden 2048 --shards 8 --out benchmarks/results/convert_memory.md

Makes a random checkpoint in the released layout, converts it there and back in processes of their own, and reports how
much memory each needed on top of its imports: its own, and resident in all, which counts pages of mapped files that the
system can drop at any time.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

TOWER = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 336,
    "patch_size": 14, "projection_dim": 256,
}  # fmt: skip
GRANULARITIES, WORDS = [36, 72, 144, 288, 576], 32
MEASURE = """
import json, sys, threading, time
from tokenflex import conversion
import tokenflex.hosts.llava_next
import transformers.models.llava_next.modeling_llava_next, transformers.models.clip.modeling_clip
def held():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return [int(lines[key].split()[0]) * 1024 for key in ("RssAnon", "VmRSS")]
before = peak = held()
def watch():
    global peak
    while True:
        peak = [max(pair) for pair in zip(peak, held())]
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
done = getattr(conversion, sys.argv[1])(sys.argv[2], sys.argv[3])
own, resident = (most - base for most, base in zip(peak, before))
print(json.dumps({"seconds": time.perf_counter() - start, "own": own, "resident": resident, "used": done.used}))
"""


def shapes(hidden: int, layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of a released checkpoint."""
    wide, vision, out = hidden * 11 // 4, TOWER["hidden_size"], {}
    for i in range(layers):
        at = f"model.layers.{i}."
        for name in "qkvo":
            out[f"{at}self_attn.{name}_proj.weight"] = (hidden, hidden)
        out |= {f"{at}mlp.gate_proj.weight": (wide, hidden), f"{at}mlp.up_proj.weight": (wide, hidden)}
        out |= {f"{at}mlp.down_proj.weight": (hidden, wide)}
        out |= {f"{at}input_layernorm.weight": (hidden,), f"{at}post_attention_layernorm.weight": (hidden,)}
    out |= {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    out |= {"model.norm.weight": (hidden,), "model.image_newline": (hidden,)}
    out |= {"model.mm_projector.0.weight": (hidden, vision), "model.mm_projector.0.bias": (hidden,)}
    out |= {"model.mm_projector.2.weight": (hidden, hidden), "model.mm_projector.2.bias": (hidden,)}
    at, side = "model.vision_tower.vision_tower.vision_model.", TOWER["patch_size"]
    out |= {
        f"{at}embeddings.class_embedding": (vision,),
        f"{at}embeddings.patch_embedding.weight": (vision, 3, side, side),
    }
    out[f"{at}embeddings.position_embedding.weight"] = ((TOWER["image_size"] // side) ** 2 + 1, vision)
    for name in ("pre_layrnorm", "post_layernorm"):
        out |= {f"{at}{name}.weight": (vision,), f"{at}{name}.bias": (vision,)}
    for i in range(TOWER["num_hidden_layers"]):
        layer = f"{at}encoder.layers.{i}."
        for name in ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"):
            out |= {f"{layer}{name}.weight": (vision, vision), f"{layer}{name}.bias": (vision,)}
        for name in ("layer_norm1", "layer_norm2"):
            out |= {f"{layer}{name}.weight": (vision,), f"{layer}{name}.bias": (vision,)}
        middle = TOWER["intermediate_size"]
        out |= {f"{layer}mlp.fc1.weight": (middle, vision), f"{layer}mlp.fc1.bias": (middle,)}
        out |= {f"{layer}mlp.fc2.weight": (vision, middle), f"{layer}mlp.fc2.bias": (vision,)}
    at, levels = "model.router.", len(GRANULARITIES)
    out |= {f"{at}voter": (sum(GRANULARITIES) + WORDS, 1), f"{at}norm.weight": (levels,), f"{at}norm.bias": (levels,)}
    out |= {f"{at}router.0.weight": (hidden, hidden), f"{at}router.0.bias": (hidden,)}
    out |= {f"{at}router.2.weight": (levels, hidden), f"{at}router.2.bias": (levels,)}
    out |= {
        f"{at}merger.self_attn.in_proj_weight": (3 * hidden, hidden),
        f"{at}merger.self_attn.in_proj_bias": (3 * hidden,),
    }
    for name in ("self_attn.out_proj", "linear1", "linear2"):
        out |= {f"{at}merger.{name}.weight": (hidden, hidden), f"{at}merger.{name}.bias": (hidden,)}
    for name in ("norm1", "norm2"):
        out |= {f"{at}merger.{name}.weight": (hidden,), f"{at}merger.{name}.bias": (hidden,)}
    return out


def make(folder: Path, hidden: int, layers: int, vocabulary: int, count: int) -> tuple[int, int, int]:
    """Write the checkpoint; (bytes in all, of the largest shard, of the largest tensor)."""
    names = shapes(hidden, layers, vocabulary)
    sizes = {name: 2 * torch.Size(shape).numel() for name, shape in names.items()}
    groups, limit = [[]], sum(sizes.values()) / count
    for name in names:
        if sum(sizes[n] for n in groups[-1]) + sizes[name] / 2 > limit and len(groups) < count:
            groups.append([])
        groups[-1].append(name)
    weight_map = {}
    for i, group in enumerate(groups, 1):
        file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        save_file(
            {name: torch.randn(names[name]).bfloat16() for name in group}, folder / file, metadata={"format": "pt"}
        )
        weight_map |= dict.fromkeys(group, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "tower").mkdir()
    (folder / "tower" / "config.json").write_text(json.dumps(TOWER | {"model_type": "video_vision_model"}))
    config = {
        "model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu", "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres", "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
        "mm_vision_tower": "tower", "hidden_size": hidden, "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers, "num_attention_heads": hidden // 128, "num_key_value_heads": hidden // 128,
        "vocab_size": vocabulary, "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 4096,
        "image_grid_pinpoints": "[(336, 672), (672, 336), (672, 672)]", "vis_token_granularity": GRANULARITIES,
        "router_select": True, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return sum(sizes.values()), max(sum(sizes[n] for n in group) for group in groups), max(sizes.values())


def measured(what: str, source: Path, out: Path) -> dict[str, float]:
    """Seconds and bytes of one run in its own process."""
    command = [sys.executable, "-c", MEASURE, what, str(source), str(out)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print, and write to ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source")
        source.mkdir()
        total, shard, tensor = make(source, options.hidden, options.layers, options.vocabulary, options.shards)
        there = measured("convert", source, Path(scratch, "converted"))
        back = measured("reverse", Path(scratch, "converted"), Path(scratch, "back"))
    mega = 2**20
    text = "\n".join(
        [
            "# Memory of `tokenflex convert`",
            "",
            f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores; torch {torch.__version__}; "
            f"`python benchmarks/convert_memory.py {' '.join(sys.argv[1:])}`. One run each, random weights.",
            "",
            f"Source: {total / mega:.0f} MiB in {options.shards} shards; largest shard {shard / mega:.0f} MiB, "
            f"largest tensor {tensor / mega:.0f} MiB.",
            "",
            "| direction | own memory, peak MiB | resident, peak MiB | one shard + one tensor, MiB | seconds |",
            "|---|---|---|---|---|",
            *(
                f"| {name} | {run['own'] / mega:.0f} | {run['resident'] / mega:.0f} | {(shard + tensor) / mega:.0f} | "
                f"{run['seconds']:.1f} |"
                for name, run in (("convert", there), ("convert --reverse", back))
            ),
            "",
        ]
    )
    sys.stdout.write(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
