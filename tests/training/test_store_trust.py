"""A store of feedback from anyone: what isn't as it was written, or isn't what the manifest promises, is refused."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from tests.training.conftest import ROWS
from tokenflex.errors import ConfigError, DataError
from tokenflex.training import ChatDataset, FeedbackStore, FlexCollator, score
from tokenflex.training.store import FeedbackWriter, ScoredSample

PART, KEPT, MANIFEST = "part-00000-00000.parquet", "part-00000-00000.safetensors", "manifest.json"
NAN, LARGE = float("nan"), 2**31 - 1


@pytest.fixture(scope="module")
def original(tmp_path_factory, flex, processor):
    folder = tmp_path_factory.mktemp("store")
    given = {"batch_size": 4, "progress": False, "router_inputs": "auto", "router_inputs_at": "projector"}
    score(flex, ChatDataset(ROWS), FlexCollator(processor), folder, **given)
    return folder


@pytest.fixture
def store(original, tmp_path):
    return shutil.copytree(original, tmp_path / "s")


def read(folder):
    """All that is in a store."""
    found = FeedbackStore(folder)
    found.require_complete()
    found.scaler_weights()
    return [(found.feedback(place), found.tokens(place), found.inputs(place)) for place in range(len(found))]


def unsealed(folder):
    told = json.loads((folder / MANIFEST).read_text())
    told.pop("digest", None)
    (folder / MANIFEST).write_text(json.dumps(told))


def rewritten(folder, change, keep=True):
    """The part with its columns changed; with its digests, or in a store of an older version, which has none."""
    if not keep:
        unsealed(folder)
    table = pq.read_table(folder / PART)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    change(columns)
    schema = pa.schema([field for field in table.schema if field.name in columns])
    made = pa.table([pa.array(columns[name], schema.field(name).type) for name in columns], schema=schema)
    pq.write_table(made.replace_schema_metadata(table.schema.metadata if keep else None), folder / PART)


def put(name, row, value):
    def change(columns):
        columns[name][row] = value

    return change


def shuffled(columns):
    for values in columns.values():
        values.reverse()


def doubled(columns):
    for values in columns.values():
        values.append(values[0])


def dropped(columns):
    for values in columns.values():
        values.pop()


CHANGES = {
    "another nll": put("nll", 0, [1.0] * 5),
    "another count": put("answer_tokens", 0, 77),
    "shuffled": shuffled,
    "dropped": dropped,
    "doubled": doubled,
    "null": put("answer_tokens", 0, None),
    "null nll": put("nll", 0, None),
    "null inside": put("nll", 0, [1.0, None, 1.0, 1.0, 1.0]),
    "no column": lambda columns: columns.pop("answer_tokens"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_tables_are_told_by_their_digest(store, name):
    rewritten(store, CHANGES[name])
    with pytest.raises(DataError, match=r"part-00000-00000\.parquet.*"):
        FeedbackStore(store)


PROMISES = {
    "an id outside 0 to 3": put("id", 0, 4),
    "an id outside": put("id", 0, -1),
    "an id stands twice": put("id", 0, 1),
    "fewer than 0 answer tokens": put("answer_tokens", 0, -1),
    "row 0 has an nll that isn't finite": put("nll", 0, [1.0, 1.0, NAN, 1.0, 1.0]),
    "an nll that isn't finite": put("nll", 1, [float("inf")] * 5),
    "an nll and no answer tokens": put("answer_tokens", 2, 0),
    "fewer than 0 visual tokens": put("visual_tokens", 0, [1, 1, 1, 1, -1]),
    r"column\(s\) \['nll'\] hold nulls|can't be read as Parquet": put("nll", 0, None),
    r"lists in the column 'nll' hold nulls": put("nll", 0, [1.0, None, 1.0, 1.0, 1.0]),
    r"missing column\(s\) \['answer_tokens'\]": CHANGES["no column"],
}


@pytest.mark.parametrize("message", PROMISES)
def test_tables_without_digests_keep_what_the_manifest_promises(store, message):
    rewritten(store, PROMISES[message], keep=False)
    with pytest.raises(DataError, match=message):
        FeedbackStore(store)


def test_what_is_harmless_in_tables_without_digests(store):
    """Ids travel with their rows, so order means nothing; a row that isn't there is missing."""
    whole = FeedbackStore(store)
    rewritten(store, shuffled, keep=False)
    again = FeedbackStore(store)
    for name in ("ids", "nll", "answer_tokens", "visual_tokens"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    rewritten(store, dropped, keep=False)
    with pytest.raises(DataError, match="holds feedback for 3 of 4 samples"):
        FeedbackStore(store).require_complete()


def test_a_table_that_lost_its_digest_is_refused(store):
    sealed = (store / MANIFEST).read_bytes()
    rewritten(store, lambda columns: None, keep=False)
    (store / MANIFEST).write_bytes(sealed)
    with pytest.raises(DataError, match="has no digest of its rows, and was written with one"):
        FeedbackStore(store)


def test_a_store_of_an_older_version_is_read(store):
    whole = read(store)
    rewritten(store, lambda columns: None, keep=False)
    for one, other in zip(read(store), whole, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[2][1].embeddings, other[2][1].embeddings)


MANIFESTS = {
    "unknown key": lambda told: told.update(more=1),
    r"missing key\(s\) \['levels'\]": lambda told: told.pop("levels"),
    "levels is -1, expected a whole number": lambda told: told.update(levels=-1),
    "levels is 'many'": lambda told: told.update(levels="many"),
    "levels is True": lambda told: told.update(levels=True),
    "router_inputs is 'int4', expected one of": lambda told: told.update(router_inputs="int4"),
    "router_inputs is True": lambda told: told.update(router_inputs=True),
    "router_inputs_at is 'roof'": lambda told: told.update(router_inputs_at="roof"),
    r"fingerprint is \[\], expected an object": lambda told: told.update(fingerprint=[]),
    "data: rows is 'x'": lambda told: told["fingerprint"]["data"].update(rows="x"),
    r"host: missing key\(s\) \['dim'\]": lambda told: told["fingerprint"]["host"].pop("dim"),
    r"host: grid is \[0, 2\], expected two whole numbers": lambda told: told["fingerprint"]["host"].update(grid=[0, 2]),
    "precision is 'int8'": lambda told: told["fingerprint"].update(precision="int8"),
    "format 9 isn't known": lambda told: told.update(format=9),
    "format True isn't known": lambda told: told.update(format=True),
}


@pytest.mark.parametrize("message", MANIFESTS)
def test_manifests_say_what_they_must(store, message):
    told = json.loads((store / MANIFEST).read_text())
    MANIFESTS[message](told)
    (store / MANIFEST).write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="isn't known" if "format" in message else "its digest isn't that of"):
        FeedbackStore(store)
    told.pop("digest", None)
    (store / MANIFEST).write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=message):
        FeedbackStore(store)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "[" * 100_000, '{"format": 1, "format": 1}', '{"format": NaN}', "é"]
)
def test_manifests_that_are_no_manifests(store, text):
    (store / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        FeedbackStore(store)


def resaved(folder, change=lambda tensors: None, layout=lambda told: told):
    tensors = load_file(folder / KEPT)
    with safe_open(folder / KEPT, "pt") as held:
        metadata = held.metadata()
    change(tensors)
    told = layout(json.loads(metadata["layout"]))
    save_file(tensors, folder / KEPT, metadata={} if told is None else {"layout": json.dumps(told)})


def swap(tensors):
    tensors["0/0"], tensors["1/0"] = tensors["1/0"], tensors["0/0"]


INPUTS = {
    "digest of row 0 isn't": lambda folder: resaved(folder, lambda t: t["0/0"].mul_(2)),
    r"digest of row [01]|0/0 is F32 of shape": lambda folder: resaved(folder, swap),
    "0/words is F16": lambda folder: resaved(folder, lambda t: t.update({"0/words": t["0/words"].half()})),
    "0/words isn't there": lambda folder: resaved(folder, lambda t: t.pop("0/words")),
    "tensors that its layout doesn't name": lambda folder: resaved(folder, lambda t: t.update(x=torch.ones(2))),
    "0/mask is U8": lambda folder: resaved(folder, lambda t: t.update({"0/mask": t["0/mask"].byte()})),
    "layout doesn't name the samples": lambda folder: resaved(folder, layout=lambda told: None),
    "layout doesn't name": lambda folder: resaved(folder, layout=lambda told: {**told, "9": []}),
    "layout of '0' is": lambda folder: resaved(folder, layout=lambda told: {**told, "0": [[1, -4, 0]]}),
    "expected F32 of shape": lambda folder: resaved(folder, layout=lambda told: {**told, "0": [[1, 4, 0]]}),
    "digest of row 0": lambda folder: resaved(
        folder, layout=lambda told: {**told, "0": [[cols, rows, video] for rows, cols, video in told["0"]]}
        if told["0"][0][0] != told["0"][0][1] else {**told, "0": [[r, c, 1] for r, c, _ in told["0"]]},
    ),
    "isn't safetensors": lambda folder: (folder / KEPT).write_bytes(b"\x80\x04]."),
    "can't be read": lambda folder: (folder / KEPT).unlink(),
    "It is cut short or damaged": lambda folder: (folder / KEPT).write_bytes((folder / KEPT).read_bytes()[:-1]),
}  # fmt: skip


@pytest.mark.parametrize("message", INPUTS)
def test_what_a_router_sees_is_what_was_kept(store, message):
    INPUTS[message](store)
    with pytest.raises(DataError, match=message):
        read(store)


def test_without_digests_values_are_finite(store):
    rewritten(store, lambda columns: None, keep=False)
    resaved(store, lambda tensors: tensors["0/0"][0, 0].fill_(NAN))
    with pytest.raises(DataError, match=r"0/0 have values that aren't finite"):
        read(store)


@pytest.mark.parametrize("name", [PART, KEPT, MANIFEST])
def test_links_out_of_the_folder_are_refused(store, tmp_path, name):
    shutil.move(store / name, tmp_path / name)
    (store / name).symlink_to(tmp_path / name)
    with pytest.raises((DataError, ConfigError), match=r"is a link to .*, outside its folder"):
        read(store)


def test_infinite_inputs_are_refused_before_they_are_written(original, tmp_path):
    images, words = FeedbackStore(original).inputs(0)
    images[0].features[0, 0, 0] = float("inf")
    with pytest.raises(DataError, match=r"of row 0 has values that aren't finite \(0/0, torch.float32\)"):
        FeedbackWriter(tmp_path, 0).write([ScoredSample(0, [0.0] * 5, 1, [1] * 5, images, words)])
    assert not list(tmp_path.iterdir())


def test_scaler_weights_are_those_of_the_manifest(store):
    save_file({"x": torch.ones(2)}, store / "scaler.safetensors")
    with pytest.raises(DataError, match="has other weights than"):
        read(store)
    (store / "scaler.safetensors").write_bytes(b"\x80\x04].")
    with pytest.raises(DataError, match="isn't safetensors"):
        read(store)
