"""Damaged stores, evaluations, questions, training data and images: refused, harmless, or on the list here.

What an accepted change may be is written in each subject's ``allowed``: a place in what is read, and why another value
there is legitimate. Stores and evaluations have digests of all they say, so nothing is on their lists. Of those that an
older version wrote, and of files that people write themselves, nothing says what they said before: another text, number
or image of the same type, and fewer, more or reordered rows, are another data set.
"""

import dataclasses
import hashlib
import io
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import LlamaConfig

import tokenflex
from tests.conftest import image as drawn
from tests.evaluation import tables as evaluations
from tests.torture import damage
from tests.torture.cage import Subject, fuzz
from tests.torture.outcome import Outcome
from tests.torture.tables import lines_structure, parquet_structure
from tokenflex.evaluation.questions import read
from tokenflex.evaluation.records import Evaluation
from tokenflex.evaluation.report import evaluation_html, evaluation_markdown
from tokenflex.evaluation.summary import summarise
from tokenflex.images import decode
from tokenflex.ops.digest import of_tensors
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor
from tokenflex.training import ChatDataset, FeedbackStore, FlexCollator, read_rows, score

AREA = "Damaged data"
OLDER = "files of older versions have no digest: another value of its type, in its range"
WRITTEN = "people write these files: another value is another data set, and no digest says what it was"
STORE = {
    r"(nll|answer_tokens|visual_tokens|inputs)(\..*)?": OLDER,
    r"(?#any)manifest\.fingerprint\..*": "compared, value by value, with what a run computes anew",
    r"manifest\.fingerprint": "a key that an older version hadn't, compared in the same way",
    r"(?#any)manifest\.projector\.config(\..*)?": "the host's configuration; weights must fit what it builds",
    r"manifest\.(router_inputs_at|levels)": "compared with the parts, and with what a run computes anew",
}
EVALUATION = {
    r"(samples|records)(\..*)?": OLDER,
    r"manifest\.(model|data)": "a name, for the report",
    r"(?#any)manifest\.fingerprint(\..*)?": "compared, value by value, with what a run computes anew",
    r"manifest\.levels": "how many there are; with fewer, or more, an answer has a level beyond, or no oracle is told",
}
ROWS = {r"(?#any)rows(\..*)?": WRITTEN}
IMAGES = {r"\w+\.\w+\.(size|pixels).*": "most formats have no digest of their pixels"}


def digest(content: bytes) -> str:
    """Short, for comparisons."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def pictured(image: Image.Image) -> dict[str, Any]:
    """What is seen of an image."""
    return {"size": list(image.size), "pixels": digest(image.tobytes())}


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image's file."""
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


# ---- stores of feedback


def seen_store(folder: Path) -> Any:
    """All that training reads of a store."""
    store = FeedbackStore(folder)
    store.require_complete()
    places, made = store.ids.tolist(), store.projector
    told = {name: getattr(store, name).tolist() for name in ("ids", "nll", "answer_tokens", "visual_tokens")}
    kept = [store.kept(place) for place in places]
    inputs = [
        of_tensors({"words": words.embeddings, "mask": words.mask, **{str(n): im.features for n, im in enumerate(ims)}})
        for ims, words in kept
    ]
    grids = [[(im.grid.rows, im.grid.cols, im.video) for im in ims] for ims, _ in kept]
    weights = {
        "scaler": of_tensors(store.scaler_weights()),
        "projector": made and of_tensors(made.projector.state_dict()),
    }
    return {**told, "inputs": inputs, "grids": grids, "weights": weights, "manifest": store.manifest}


def store_subjects(root: Path) -> list[Subject]:
    """A store as it is written, and one of an older version."""
    torch.manual_seed(0)
    config: Any = tiny_llava_next().config
    text = config.text_config.to_dict()
    wide = LlamaConfig(**{**text, "hidden_size": 2 * text["hidden_size"], "head_dim": text["hidden_size"] // 2})
    flex, collator = tokenflex.wrap(tiny_llava_next(text_config=wide)), FlexCollator(tiny_llava_next_processor())
    turns = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    data = ChatDataset([{"image": drawn(i).resize((12, 10)), "messages": turns} for i in range(3)])
    for name in ("store", "old_store"):
        score(flex, data, collator, root / name, router_inputs="auto", router_inputs_at="tower", progress=False)
    files = sorted(path.name for path in (root / "store").iterdir())
    older(root / "old_store")
    return [
        Subject("store of feedback", root / "store", files, seen_store),
        Subject("store of an older version", root / "old_store", files, seen_store, STORE),
    ]


def older(folder: Path) -> None:
    """As a version without digests wrote it."""
    told = json.loads((folder / "manifest.json").read_text())
    del told["digest"]
    (folder / "manifest.json").write_text(json.dumps(told, indent=2))
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata(None), path)


# ---- evaluations


def seen_evaluation(folder: Path) -> Any:
    """All that reports are made of, which are made."""
    found = Evaluation(folder)
    summary = summarise(found, resamples=9)
    assert evaluation_markdown(summary)
    assert evaluation_html(summary, found)
    samples = [[*dataclasses.asdict(one.question).values(), *map(digest, one.images)] for one in found.samples]
    records = {name: [vars(rows[place]) for place in sorted(rows)] for name, rows in found.records.items()}
    return {"manifest": found.manifest, "samples": samples, "records": records}


def evaluation_subjects(root: Path) -> list[Subject]:
    """An evaluation as it is written, and one of an older version."""
    settings = {
        "level:0": ([1, 0, 1], [2, 2, 2]), "level:1": ([1, 1, 0], [8, 8, 8]),
        "router": ([1, 1, 1], [2, 8, 2], [[0], [1], [0]]),
    }  # fmt: skip
    for name in ("evaluation", "old_evaluation"):
        images = {0: (file(drawn(0).resize((9, 8)), "PNG"),)}
        evaluations.made(root / name, settings, kinds=["a", "b", "a"], images=images)
    older(root / "old_evaluation")
    files = ("manifest.json", "samples.parquet", "part-00000-00000.parquet")
    return [
        Subject("evaluation", root / "evaluation", files, seen_evaluation),
        Subject("evaluation of an older version", root / "old_evaluation", files, seen_evaluation, EVALUATION),
    ]


# ---- rows that people write


def asked(place: int, image: Any) -> dict[str, Any]:
    """A question."""
    choices = {"choices": ["red", "blue"], "answer": place % 2} if place == 1 else {"answers": ["w1", "w2"]}
    return {"id": f"q{place}", "image": image, "question": f"w{place} w5", "kind": "k", **choices}


def seen_questions(path: Path) -> Any:
    """Every question with its images."""
    found = read(path, image_folder=path.parent)
    told = [dataclasses.asdict(one) for one in found.questions]
    for place, one in enumerate(told):
        sample = found.sample(place)
        one |= {"images": [pictured(image) for image in sample.images], "messages": list(sample.messages)}
        assert found.sizes(place) is not None
    return {"rows": told}


def seen_training(path: Path) -> Any:
    """Every sample of training data."""
    data = ChatDataset(read_rows(path), image_folder=path.parent)
    samples = [data[place] for place in range(len(data))]
    assert all(data.extent(place) for place in range(len(data)))
    return {"rows": [{"messages": list(s.messages), "images": list(map(pictured, s.images))} for s in samples]}


def rows_subjects(root: Path) -> list[Subject]:
    """Questions and training data in every format, images in them or beside them."""
    import datasets

    found, small = [], [file(drawn(i).resize((9, 8)), "PNG") for i in range(3)]
    for kind in ("json", "jsonl"):
        folder = root / kind
        folder.mkdir()
        for i, content in enumerate(small):
            (folder / f"{i}.png").write_bytes(content)
        rows = [asked(i, f"{i}.png") for i in range(3)]
        talk = [{"from": "human", "value": "<image>\nw1 w2"}, {"from": "gpt", "value": "w3"}]
        told = [{"id": i, "image": f"{i}.png", "conversations": talk} for i in range(3)]
        for name, some in (("questions", rows), ("training", told)):
            text = json.dumps(some, indent=1) if kind == "json" else "\n".join(map(json.dumps, some))
            (folder / f"{name}.{kind}").write_text(text)
        words = "JSON" if kind == "json" else "JSON Lines"
        for name, seen in (("questions", seen_questions), ("training", seen_training)):
            load = reader(seen, f"{name}.{kind}")
            found.append(Subject(f"{name}, {words}", folder, (f"{name}.{kind}",), load, ROWS))
    stored = [{**asked(i, {"bytes": content, "path": None}), "choices": None} for i, content in enumerate(small)]
    for row in stored:
        row |= {"answers": ["w1"], "answer": None}
    made = datasets.Dataset.from_list(stored).cast_column("image", datasets.Image())
    (root / "parquet").mkdir()
    made.to_parquet(str(root / "parquet" / "questions.parquet"))
    made.save_to_disk(str(root / "saved"))
    files = sorted(path.name for path in (root / "saved").iterdir())
    load = reader(seen_questions, "questions.parquet")
    found.append(Subject("questions, Parquet", root / "parquet", ("questions.parquet",), load, ROWS))
    found.append(Subject("questions, saved folder", root / "saved", files, reader(seen_questions, "."), ROWS))
    return found


def reader(seen: Any, name: str) -> Any:
    """What is seen of one file of a folder."""
    return lambda folder: seen(folder / name)


# ---- images


def images_subject(root: Path) -> Subject:
    """Files of every format that is read."""
    folder = root / "images"
    folder.mkdir()
    image, exif = drawn(0).resize((24, 18)), Image.Exif()
    exif[0x0112] = 6
    made = {
        "a.png": file(image, "PNG", exif=exif), "b.jpg": file(image, "JPEG", exif=exif), "c.gif": file(image, "GIF"),
        "d.webp": file(image, "WEBP"), "e.tif": file(image, "TIFF", compression="tiff_lzw"),
        "f.bmp": file(image, "BMP"), "g.ppm": file(image, "PPM"), "h.png": file(image.convert("P"), "PNG"),
        "i.png": file(image.convert("I;16") if image.mode == "I" else image.convert("LA"), "PNG"),
        "j.jp2": file(image, "JPEG2000"), "k.tga": file(image, "TGA"), "l.jpg": file(image.convert("CMYK"), "JPEG"),
        "m.webp": file(image, "WEBP", save_all=True, append_images=[image.rotate(90)]), "n.avif": file(image, "AVIF"),
    }  # fmt: skip
    for name, content in made.items():
        (folder / name).write_bytes(content)

    def load(where: Path) -> Any:
        return {name: pictured(decode(name, where)) for name in made}

    return Subject("images of 11 formats", folder, sorted(made), load, IMAGES)


def subjects(root: Path) -> list[tuple[Subject, int]]:
    """All of them, and how often each is damaged at scale 1."""
    store, old_store = store_subjects(root)
    evaluation, old_evaluation = evaluation_subjects(root)
    times = (1500, 1000, 1500, 1000, 500, 500)
    return [
        (store, 1500), (old_store, 1000), (evaluation, 1000), (old_evaluation, 700),
        *zip(rows_subjects(root), times, strict=True), (images_subject(root), 2000),
    ]  # fmt: skip


def run(scale: float, seed: int) -> list[Outcome]:
    """Damage every kind of file; the same seed gives the same damage."""
    import datasets
    from datasets import config

    made = []
    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    structure = {**damage.STRUCTURE, ".jsonl": lines_structure, ".parquet": parquet_structure}
    with (
        TemporaryDirectory() as folder,
        TemporaryDirectory() as cache,
        mock.patch.object(damage, "STRUCTURE", structure),
        mock.patch.object(config, "HF_DATASETS_CACHE", Path(cache)),
    ):
        for subject, times in subjects(Path(folder)):
            made.append(fuzz(subject, max(8, round(times * scale)), seed).row(AREA, subject))
    return made
