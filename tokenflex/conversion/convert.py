"""Released folders to host + parts and back, one shard at a time, each folder complete or not at all."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, GenerationConfig, LlavaNextForConditionalGeneration

from tokenflex import checkpoint, compressor, loadable
from tokenflex.compressor import Compressor
from tokenflex.contracts import Grid
from tokenflex.conversion import finished, layout, processor, shards
from tokenflex.conversion.shards import Shards
from tokenflex.conversion.small import SUFFIXES, below, copy_small
from tokenflex.errors import ConfigError, TokenFlexError
from tokenflex.hosts.llava_next import LlavaNextAdapter

KEPT = "released"
"""Sub-folder of a converted model with the source's own small files, for the way back."""
SHARD_MAP = "shards.json"


@dataclass(frozen=True)
class Conversion:
    """What was done.

    Attributes:
        source_tensors: tensors the source holds.
        used: of these, how many went into the result; always all of them.
        parts: whether there was a trained router.
        written: False where an earlier run had written just that already, and nothing was done.
    """

    source_tensors: int
    used: int
    parts: bool
    written: bool = True

    def record(self) -> dict[str, Any]:
        """What a record keeps of it."""
        return {"source_tensors": self.source_tensors, "used": self.used, "parts": self.parts}


@dataclass(frozen=True)
class ReleasedModel:
    """A released checkpoint without its tensors.

    Attributes:
        host: the stock host on the meta device.
        parts: scaler, router, voter and policy on the meta device.
        adapter: serves ``host`` in the published manner.
        trained: whether the checkpoint holds a router.
    """

    config: layout.Config
    tower: CLIPVisionConfig
    host: LlavaNextForConditionalGeneration
    parts: Compressor
    adapter: LlavaNextAdapter
    trained: bool


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    waiting: Callable[[], None] = lambda: None,
) -> Conversion:
    """Write a stock LLaVA-NeXT folder with ``tokenflex.json`` and ``tokenflex.safetensors``.

    Precision is kept, nothing is unpickled, and at any time one shard is in memory. A checkpoint without router
    (stage 3, M3) becomes a host with the scaler and a constant router at the finest level.

    Args:
        source: a released folder, or the id of a repository on the model hub.
        out: a folder that doesn't exist yet, or that the same conversion wrote: it is compared, and left as it is.
        force: replace a model that is in ``out``.
        waiting: called once, if another process writes to ``out``; its end is waited for.

    Raises:
        ConfigError: ``out`` holds something else, or the source isn't what its settings say; lists every tensor
            concerned.
        WriteError: ``out`` can't be written.
    """
    folder, target = fetch(source), Path(out)
    made_of = functools.cache(lambda: finished.source_of(folder, "convert"))
    with finished.alone(target, waiting):
        found = finished.earlier(target, folder, made_of, force)
        if found is not None:
            return Conversion(**found, written=False)
        tensors = Shards(folder)
        for name, page in (
            ("config.json", _json(folder / "config.json")),
            ("tower", tower_file(folder, "config.json")),
        ):
            loadable.require_sane(page, len(tensors.file_of), f"{folder}: {name}")
        model = describe_released(folder)
        _account(tensors, model)
        done = Conversion(len(tensors.file_of), len(tensors.file_of), model.trained)
        with finished.complete(target, made_of, done.record()) as scratch:
            _write(folder, tensors, model, scratch)
    return done


def _write(folder: Path, tensors: Shards, model: ReleasedModel, scratch: Path) -> None:
    """Write all files of a converted folder into ``scratch``."""
    _write_host(tensors, model, scratch)
    state = dict(part_tensors(tensors))
    loadable.require_sound(state, str(folder))
    checkpoint.save(scratch, checkpoint.describe(model.parts, model.adapter), state)
    model.host.config.save_pretrained(scratch)
    generation_config(folder, model).save_pretrained(scratch)
    processor.build(folder, model.config, model.tower, tower_file(folder, "preprocessor_config.json")).save_pretrained(
        scratch
    )
    _keep_small_files(folder, tensors, scratch / KEPT)
    _verify(scratch)


def reverse(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    waiting: Callable[[], None] = lambda: None,
) -> Conversion:
    """Write a converted (and perhaps further trained) model in the released layout again, bit for bit.

    Args:
        source: a folder that `convert` wrote.
        out, force, waiting: as for `convert`.

    Raises:
        ConfigError: ``out`` holds something else, a file names another one outside its folder, or tensors are missing
            or left over; lists them.
        WriteError: ``out`` can't be written.
    """
    folder, target = Path(source), Path(out)
    made_of = functools.cache(lambda: finished.source_of(folder, "reverse"))
    with finished.alone(target, waiting):
        found = finished.earlier(target, folder, made_of, force)
        if found is not None:
            return Conversion(**found, written=False)
        file_of, vocabulary = _kept(folder)
        host = Shards(folder)
        _, parts = checkpoint.load(folder)
        places = {layout.released_name(name, is_part=False): name for name in host.file_of}
        routed = {layout.released_name(name, is_part=True): name for name in parts}
        expected = {name for name in file_of if not layout.RECOMPUTED.search(name)}
        _agree("released layout", expected, {str(name) for name in (*places, *routed)})
        done = Conversion(len(expected), len(expected), bool(routed))
        with finished.complete(target, made_of, done.record()) as scratch:
            total = 0
            for file in sorted(set(file_of.values())):
                here = sorted(name for name in expected if file_of[name] == file)
                back = {places[name]: name for name in here if name in places}
                loaded = {back[name]: tensor for name, tensor in host.read(sorted(back))}
                for name in here:
                    if name in layout.PER_TOKEN:
                        loaded[name] = loaded[name][:vocabulary]
                    if name in routed:
                        loaded[name] = _part_back(name, parts[routed[name]])
                total += sum(map(shards.nbytes, loaded.values()))
                shards.write(scratch, file, loaded)
            shards.write_index(scratch, {name: file_of[name] for name in expected}, total)
            copy_small(folder, scratch, inside=KEPT, leave=(SHARD_MAP, shards.INDEX))
    return done


def _kept(folder: Path) -> tuple[dict[str, str], int]:
    """Which shard of the released layout holds each tensor, and the size of its vocabulary."""
    places, settings = below(folder, f"{KEPT}/{SHARD_MAP}"), below(folder, f"{KEPT}/config.json")
    if not places.is_file():
        raise ConfigError(
            f"{places} is missing: the released layout's settings are kept there by 'tokenflex convert'. "
            f"For a model trained further, copy the folder {KEPT}/ of its conversion to it."
        )
    vocabulary = _json(settings).get("vocab_size")
    if not isinstance(vocabulary, int):
        raise ConfigError(f"{settings} doesn't say vocab_size; copy the folder {KEPT}/ of the conversion.")
    return shards.shard_names(shards.read_json(places), places), vocabulary


def fetch(source: str | os.PathLike[str]) -> Path:
    """The folder itself, or the hub repository's local copy.

    Raises:
        ConfigError: neither a folder nor a repository that can be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.safetensors", *(f"*{end}" for end in SUFFIXES)]))
    except Exception as error:
        raise ConfigError(f"{str(source)!r} is no folder here and can't be fetched from the hub: {error}") from error


def describe_released(folder: Path) -> ReleasedModel:
    """Host and parts a released folder stands for, without memory for their tensors.

    Raises:
        ConfigError: ``config.json`` is missing or describes something stock LLaVA-NeXT can't be.
    """
    config = _json(folder / "config.json")
    if not config:
        raise ConfigError(f"{folder} has no config.json; give the folder of a released checkpoint.")
    layout.check(config)
    try:
        return _described(folder, config)
    except TokenFlexError:
        raise
    except Exception as error:  # whatever transformers and torch raise for settings that they weren't made for
        raise ConfigError(
            f"{folder / 'config.json'}, or that of its vision tower, can't be the settings of a LLaVA-NeXT: "
            f"{type(error).__name__}: {error!s:.500}. Download the checkpoint again."
        ) from error


def _described(folder: Path, config: layout.Config) -> ReleasedModel:
    tower: Any = layout.tower_config(config, tower_file(folder, "config.json") or None)
    trained = bool(config.get("router_select"))
    side = tower.image_size // tower.patch_size
    windows = layout.windows(layout.granularities(config), side)
    with torch.device("meta"):
        host = LlavaNextForConditionalGeneration(layout.host_config(config, tower))
        parts = compressor.build(
            scaler=_settings("scaler", "average-pool", windows=windows),
            router=_settings("router", "avg", **layout.router_settings(config))
            if trained
            else _settings("router", "constant"),
            voter=_settings("voter", "position-weighted" if trained else "mean"),
            policy=_settings("policy", "argmax"),
            dim=config["hidden_size"],
            grid=Grid(side, side),
        )
    adapter = LlavaNextAdapter(host, unpad="released", scope="published", vocabulary=config["vocab_size"])
    return ReleasedModel(config, tower, host, parts, adapter, trained)


def host_tensors(tensors: Shards, file: str) -> Iterator[tuple[str, Tensor]]:
    """(stock name, tensor) of one shard's share of the host, with a row for the image token."""
    names = [name for name in tensors.names(file) if not layout.RECOMPUTED.search(name)]
    stock = {name: found[0] for name in names if (found := layout.stock_name(name)) and not found[1]}
    for name, tensor in tensors.read(sorted(stock)):
        if name in layout.PER_TOKEN:
            tensor = torch.cat([tensor, tensor.new_zeros(1, tensor.shape[1])])
        yield stock[name], tensor


def part_tensors(tensors: Shards) -> Iterator[tuple[str, Tensor]]:
    """(our name, tensor) of the router and voter."""
    ours = {name: found[0] for name in tensors.file_of if (found := layout.stock_name(name)) and found[1]}
    for name, tensor in tensors.read(sorted(ours)):
        yield ours[name], tensor.flatten() if ours[name] == "voter.weight" else tensor


def generation_config(folder: Path, model: ReleasedModel) -> GenerationConfig:
    """The source's own, with the image token never generated."""
    settings = {key: value for key, value in _json(folder / "generation_config.json").items() if key[0] != "_"}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        settings.setdefault(key, model.config.get(key))
    settings.pop("transformers_version", None)
    return GenerationConfig(**settings, suppress_tokens=[model.host.config.image_token_id])


def tower_file(folder: Path, name: str) -> layout.Config:
    """A file of the vision tower's folder inside the checkpoint's, or nothing.

    Raises:
        ConfigError: the tower's folder is named outside the checkpoint's.
    """
    named = _json(folder / "config.json").get("mm_vision_tower")
    return _json(below(folder, f"{named}/{name}")) if isinstance(named, str) and len(named) < 1000 else {}


def _settings(kind: str, name: str, **settings: Any) -> Any:
    return checkpoint.KINDS[kind].get(name).Config(**settings)


def _part_back(name: str, tensor: Tensor) -> Tensor:
    return tensor[:, None] if name == "model.router.voter" else tensor


def _json(path: Path) -> dict[str, Any]:
    return shards.read_json(path) if path.is_file() else {}


def _account(tensors: Shards, model: ReleasedModel) -> None:
    """Every source tensor has a place, and every tensor of the parts a source, of the right shape."""
    unknown = [name for name in tensors.file_of if not layout.stock_name(name) and not layout.RECOMPUTED.search(name)]
    if unknown:
        raise ConfigError(f"the source has tensors that LLaVA-NeXT and its router don't have: {sorted(unknown)}.")
    buffers = [name for name in tensors.file_of if layout.RECOMPUTED.search(name)]
    for name, tensor in tensors.read(sorted(buffers)):
        shards.is_recomputed(name, tensor)
    found = {name: tuple(tensor.shape) for name, tensor in part_tensors(tensors)}
    expected = {name: tuple(tensor.shape) for name, tensor in model.parts.state_dict().items()}
    _agree("router", set(expected), set(found))
    wrong = [f"{name} {found[name]} (expected {shape})" for name, shape in expected.items() if found[name] != shape]
    if wrong:
        raise ConfigError(f"the router's tensors don't fit vis_token_granularity and filtered_text_num: {wrong}.")


def _agree(what: str, expected: set[str], found: set[str]) -> None:
    if expected != found:
        raise ConfigError(
            f"{what}: tensors that are missing {sorted(expected - found)}, that have no place "
            f"{sorted(found - expected)}. The checkpoint is incomplete, or of another kind than its config.json says."
        )


def _write_host(tensors: Shards, model: ReleasedModel, scratch: Path) -> None:
    """Write the host's shards; each is let go before the next is read."""
    shapes = _stock_shapes(model.host)
    files = [
        file for file in tensors.files if any(not (layout.stock_name(n) or ("", True))[1] for n in tensors.names(file))
    ]
    file_of: dict[str, str] = {}
    total = 0
    for number, file in enumerate(files, 1):
        name = shards.SINGLE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        loaded = dict(host_tensors(tensors, file))
        loadable.require_sound(loaded, file)
        wrong = [f"{n} {tuple(t.shape)}" for n, t in loaded.items() if shapes.get(n, tuple(t.shape)) != tuple(t.shape)]
        if wrong:
            raise ConfigError(f"{file}: tensors whose shape doesn't fit config.json: {wrong}.")
        shards.write(scratch, name, loaded)
        file_of.update(dict.fromkeys(loaded, name))
        total += sum(map(shards.nbytes, loaded.values()))
    _agree("host", set(shapes), set(file_of))
    shards.write_index(scratch, file_of, total)


def _stock_shapes(host: LlavaNextForConditionalGeneration) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the host, under the names this module writes."""
    shapes = {}
    for name, tensor in host.state_dict().items():
        released = layout.released_name(name, is_part=False)
        found = layout.stock_name(released) if released else None
        shapes[found[0] if found else name] = tuple(tensor.shape)
    return shapes


def _keep_small_files(folder: Path, tensors: Shards, kept: Path) -> None:
    """Copy the source's settings and tokenizer, and where each tensor came from."""
    copy_small(folder, kept, leave=(shards.INDEX,))
    (kept / SHARD_MAP).write_text(json.dumps(tensors.file_of, indent=2) + "\n", encoding="utf-8")


def _verify(folder: Path) -> None:
    """transformers itself finds every tensor of the host in the folder, and no other."""
    loaded: Any = LlavaNextForConditionalGeneration.from_pretrained(
        folder, device_map="meta", output_loading_info=True, dtype="auto"
    )
    problems = {kind: sorted(map(str, names)) for kind, names in loaded[1].items() if names}
    if problems:
        raise ConfigError(f"transformers doesn't find the converted host complete: {problems}.")
