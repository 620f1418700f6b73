"""Where tokens go in the prompt, for many image sizes and for whole batches, against the published code."""

import pytest
import torch
from transformers.image_processing_utils import select_best_resolution

from tests.parity.golden import case, cases, extra, tensors
from tokenflex.contracts import Grid, ScaledTokens, VisualTokens
from tokenflex.conversion import layout
from tokenflex.errors import ConfigError
from tokenflex.hosts.instruction import published_words
from tokenflex.hosts.llava_next import LlavaNextAdapter
from tokenflex.hosts.placeholders import IGNORE
from tokenflex.ops.packing import NEWLINE, anyres_count, anyres_order, kept_spans
from tokenflex.testing.tiny_hosts import tiny_llava_next

IMAGE_SLOT, IMAGE = -200, 30
VISUAL, SEPARATOR, TEXT, PADDING = 1, 2, 3, 0


def images():
    """(set of pinpoints, image) for every image of the golden file."""
    return [(key, image) for key, info in cases("packing").items() for image in info["images"]]


def geometry(key, image):
    """(tiles down and across, grid of a tile, (height, width) of the image)."""
    side = cases("packing")[key]["tile_grid"]
    across, down = image["grid_wh"]
    width, height = image["size_wh"]
    return Grid(down, across), Grid(side, side), (height, width)


def levels(image):
    """(tokens per tile, its grid, what the published code kept) coarse to fine."""
    return [(int(size), Grid(*said["tile_hw"]), said) for size, said in image["per_granularity"].items()]


def test_no_case_is_left_out():
    assert [len(info["images"]) for info in cases("packing").values()] == [36, 36]
    assert all(len(image["per_granularity"]) == 5 for _, image in images())
    assert sum("/order_" in name for name in tensors("packing")) == 40
    assert len(extra("packing", "sequence_cases")) == 13
    assert len(extra("packing", "pure_text_cases")) == 10


@pytest.mark.parametrize("key", cases("packing"))
def test_canvases_and_tiles(key):
    info = cases("packing")[key]
    pinpoints = [[height, width] for width, height in layout.pinpoints(info)]
    for image in info["images"]:
        width, height = image["size_wh"]
        best = select_best_resolution((height, width), pinpoints)
        assert list(best[::-1]) == image["best_resolution_wh"]
        across, down = image["grid_wh"]
        assert across * down + 1 == image["tiles"]
        assert [best[1] // info["tile_size"], best[0] // info["tile_size"]] == [across, down]


@pytest.mark.parametrize("key", cases("packing"))
def test_released_counts_and_cuts(key):
    for image in cases("packing")[key]["images"]:
        tiles, grid, size = geometry(key, image)
        for _, kept, said in levels(image):
            (top, bottom), (left, right) = kept_spans(tiles, grid, kept, size, "released")
            if bottom > top and right > left:
                assert [[top, bottom], [left, right]] == [said["rows"], said["cols"]]
            else:
                assert (said["rows"], said["cols"]) == ([0, 0], [0, 0]) or said["newlines"] == max(bottom - top, 0)
            assert anyres_count(tiles, grid, kept, size, "released") == said["tokens"]
            order = torch.from_numpy(anyres_order(tiles, grid, kept, size, "released").copy())
            assert len(order) == said["tokens"]
            assert int((order == NEWLINE).sum()) == said["newlines"]


def named(order, kept):
    """Our order in the golden file's terms: (kind, tile, row, col)."""
    tile, cell = order // kept.tokens, order % kept.tokens
    rows = torch.stack([torch.full_like(order, VISUAL), tile, cell // kept.cols, cell % kept.cols], dim=-1)
    rows[order == NEWLINE] = torch.tensor([SEPARATOR, 0, 0, 0])
    return rows


def test_released_order_token_for_token():
    compared = 0
    for key, image in images():
        tiles, grid, size = geometry(key, image)
        width, height = image["size_wh"]
        found = case("packing", f"{key}/{width}x{height}")
        for tokens, kept, _ in levels(image):
            if f"order_{tokens}" in found:
                order = torch.from_numpy(anyres_order(tiles, grid, kept, size, "released").copy())
                assert torch.equal(named(order, kept), found[f"order_{tokens}"].long())
                compared += 1
    assert compared == 40


def test_geometric_unpadding_differs_where_the_published_one_is_wrong_and_nowhere_else():
    """Equal at the finest level; within a cell at square windows; at 1:2 windows nothing of the image is cut."""
    differs = {"square": 0, "oblong": 0}
    for key, image in images():
        tiles, grid, size = geometry(key, image)
        finest = kept_spans(tiles, grid, grid, size, "geometric")
        for tokens, kept, said in levels(image):
            ours = kept_spans(tiles, grid, kept, size, "geometric")
            published = (tuple(said["rows"]), tuple(said["cols"]))
            if tokens == grid.tokens:
                assert anyres_count(tiles, grid, kept, size, "geometric") == said["tokens"]
                continue
            window = (grid.rows // kept.rows, grid.cols // kept.cols)
            for (start, end), (first, last), cell in zip(ours, finest, window, strict=True):
                assert (start, end) == ((first // cell, -(-last // cell)) if last > first else (0, 0))
            if window[0] == window[1]:
                off = [
                    abs(a - b)
                    for mine, its in zip(ours, published, strict=True)
                    for a, b in zip(mine, its, strict=True)
                ]
                assert max(off) <= 1 or published[0] == (0, 0) or published[1] == (0, 0)
                differs["square"] += ours != published
            else:
                differs["oblong"] += ours != published
    assert differs["oblong"] >= 100 > 60 >= differs["square"], differs


def test_the_published_cut_loses_half_of_a_square_image():
    """672 x 672 has no padding at all; at 288 and 72 tokens per tile the released unpadding keeps half of it."""
    image = next(i for i in cases("packing")["real_unpad"]["images"] if i["size_wh"] == [672, 672])
    tiles, grid, size = geometry("real_unpad", image)
    counts = {
        tokens: [anyres_count(tiles, grid, kept, size, unpad) for unpad in ("released", "geometric")]
        for tokens, kept, _ in levels(image)
    }
    assert counts == {36: [192, 192], 72: [228, 384], 144: [744, 744], 288: [888, 1488], 576: [2928, 2928]}


@pytest.fixture(scope="module")
def adapter():
    """Serves a host of the golden batches' geometry; features of width 4 name their own place."""
    shape = extra("packing", "sequence_geometry")
    host = tiny_llava_next(
        image_grid_pinpoints=[[height, width] for width, height in shape["image_grid_pinpoints"]], image_token_id=IMAGE
    )
    host.config.vision_config.image_size = shape["tile_size"]
    host.config.vision_config.patch_size = shape["tile_size"] // shape["tile_grid"]
    host.config.pad_token_id = 0
    host.model.image_newline = torch.nn.Parameter(torch.tensor([float(SEPARATOR), 0, 0, 0]))
    made = LlavaNextAdapter(host, unpad="released")
    assert made.grid == Grid(8, 8)
    return made


def written_out(adapter, info):
    """The batch as our processor's users have it: full placeholders, sizes, and features that name their place."""
    sizes = [(h, w) for (w, h), tiles in zip(info["image_sizes_wh"], info["tiles"], strict=True) if tiles > 0]
    full = iter(anyres_count(adapter.tiles(size), adapter.grid, adapter.grid, size, "geometric") for size in sizes)
    rows, owners = [], []
    extras = {key: info[key] for key in ("attention_mask", "labels") if info[key] is not None}
    spread = {key: [] for key in extras}
    for i, ids in enumerate(info["input_ids"]):
        repeats = [next(full) if token == IMAGE_SLOT else 1 for token in ids]
        owners += [i for token in ids if token == IMAGE_SLOT]
        rows.append(run([IMAGE if token == IMAGE_SLOT else token for token in ids], repeats))
        for key, value in extras.items():
            spread[key].append(run(value[i], repeats))
    left = info["config"].get("tokenizer_padding_side") == "left"
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE}
    batch = {key: padded(value, fill[key], left) for key, value in {"input_ids": rows, **spread}.items()}
    batch |= {"pixel_values": torch.zeros(len(sizes), 1), "image_sizes": torch.tensor(sizes)}
    kept = next(
        kept for size, kept, _ in levels(cases("packing")["tiny_unpad"]["images"][0]) if size == info["granularity"]
    )
    images, scaled = [], []
    for size, row in zip(sizes, owners, strict=True):
        views = adapter.tiles(size).tokens + 1
        places = named(torch.arange(views * kept.tokens), kept).float().view(views, kept.tokens, 4)
        places[..., 1] += sum(len(image.features) for image in images)  # golden tiles are counted through the batch
        images.append(VisualTokens(torch.zeros(views, 64, 4), adapter.grid, row=row))
        scaled.append(ScaledTokens(places, torch.zeros(views, 64, dtype=torch.long), kept))
    return batch, images, scaled


def run(values, repeats):
    return [value for value, times in zip(values, repeats, strict=True) for _ in range(times)]


def padded(rows, fill, left):
    length = max(map(len, rows))
    return torch.tensor(
        [[fill] * (length - len(row)) + row if left else row + [fill] * (length - len(row)) for row in rows]
    )


def read_back(inputs, pictured):
    """(rows, length, 4) in the golden file's terms."""
    ids = inputs["input_ids"]
    places = torch.stack([torch.full_like(ids, TEXT), ids, *[torch.zeros_like(ids)] * 2], dim=-1)
    mask = inputs.get("attention_mask")
    if mask is not None:
        places[mask == 0] = PADDING
    if pictured:
        features = torch.cat(inputs["mm_encoder_outputs"]["image"].pooler_output)
        places[ids == IMAGE] = features.long()
    return places


SEQUENCES = extra("packing", "sequence_cases")
OTHER_MODELS = {
    "single_tile_in_list": {"image_aspect_ratio": "pad"},
    "images_4d_square": {"image_aspect_ratio": "pad"},
    "spatial_no_unpad": {"mm_patch_merge_type": "spatial"},
    "flat": {"mm_patch_merge_type": "flat"},
}


@pytest.mark.parametrize("key", [key for key in SEQUENCES if key not in OTHER_MODELS])
def test_whole_batches(adapter, key):
    info, expected = SEQUENCES[key], case("packing", f"seq/{key}")
    batch, images, scaled = written_out(adapter, info)
    found = adapter.splice(adapter.read(batch), images, scaled).inputs
    places = read_back(found, bool(images))
    limit = info["config"].get("tokenizer_model_max_length")
    assert places.shape[1] == info["length"] or limit
    theirs = expected["sequence"].long()
    # The published code cuts the packed sequence at the end; here texts are cut before, never images.
    length = theirs.shape[1]
    assert torch.equal(places[:, :length], theirs)
    assert places.shape[1] == length or length == limit
    if "labels" in expected:
        assert torch.equal(found["labels"][:, :length], expected["labels"].long())
    if "attention_mask" in expected:
        assert torch.equal(found["attention_mask"][:, :length].bool(), expected["attention_mask"].bool())


@pytest.mark.parametrize("key", OTHER_MODELS)
def test_what_stock_llava_next_never_packs_is_refused(key):
    """One-tile images come from square-padding models; ``spatial`` and ``flat`` are other merges."""
    assert (case("packing", f"seq/{key}")["sequence"] >= 0).all()
    config = {
        "model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu", "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres", "mm_vision_select_feature": "patch",
    }  # fmt: skip
    layout.check(config)
    ((name, value),) = OTHER_MODELS[key].items()
    with pytest.raises(ConfigError, match=f"{name}='{value}'"):
        layout.check(config | {name: value})


TEXTS = extra("packing", "pure_text_cases")


@pytest.mark.parametrize("key", TEXTS)
def test_the_routers_words(key):
    info = TEXTS[key]
    ids = torch.tensor(info["input_ids"])
    mask = None if info["attention_mask"] is None else torch.tensor(info["attention_mask"])
    labels = None if info["labels"] is None else torch.tensor(info["labels"])
    images = (ids == IMAGE_SLOT).sum(-1).tolist()
    found, instruction = published_words(ids, mask, labels, image_token_id=IMAGE_SLOT, pad_token_id=0, images=images)
    tokens, theirs = torch.tensor(info["tokens"]), torch.tensor(info["mask"]).bool()
    limit = info["config"].get("tokenizer_model_max_length", found.shape[1])
    assert torch.equal(found[:, :limit], tokens)
    if key == "train_labels_none":  # training without labels: the published mask is empty, ours is the prompt
        assert not theirs.any()
        assert torch.equal(instruction, tokens >= 0)
        return
    assert torch.equal(instruction[:, :limit], theirs)
