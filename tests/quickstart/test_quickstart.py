"""The embedded task, and the whole command in small."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForImageTextToText

import tokenflex
from tokenflex.catalog import HOSTS_SINCE
from tokenflex.contracts import Decision, Tried
from tokenflex.errors import ConfigError
from tokenflex.quickstart import evaluate
from tokenflex.quickstart.evaluate import GradedAnswers, Results
from tokenflex.quickstart.host import seeded
from tokenflex.quickstart.images import COARSE_KINDS, COLS, FINE_KINDS, INKS, ROWS, SPACINGS, exam, scenes, words
from tokenflex.quickstart.lines import AT
from tokenflex.quickstart.recipe import QuickstartPlan
from tokenflex.quickstart.run import run
from tokenflex.quickstart.tower import TowerWork

ROUTERS = ("router", "random_router", "reconstruction_router", "random_reconstruction")
SEEING_LESS = ("router_without_image", "router_without_question")
ESCALATED = ("escalate", "router_escalate")


def tiny(**settings):
    """The recipe in small; a promise with one wrong answer in five needs few questions."""
    plan = QuickstartPlan()
    phases = tuple(replace(phase, rows=2, steps=2) for phase in plan.phases)
    sizes = {
        "scored": 4,
        "stock": 20,
        "questions": 36,
        "calibration": 24,
        "risk": 0.2,
        "confidence": 0.9,
        "pretrain_steps": 2,
    }
    return replace(plan, phases=phases, **{**sizes, **settings})


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    return run(folder, seed=1, device="cpu", plan=tiny()), folder


@pytest.fixture(scope="module")
def sized(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sized")
    return run(folder, seed=1, device="cpu", levels="resolution", plan=tiny()), folder


@pytest.mark.parametrize("beginning", ["", "{{ bos_token }} "])
def test_questions_have_one_beginning_of_sequence(beginning, monkeypatch):
    host, processor = seeded(0)
    processor.chat_template = beginning + processor.chat_template
    start = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    processor.tokenizer.backend_tokenizer.post_processor = start
    flex, asked = tokenflex.wrap(host), []

    def generate(**inputs):
        asked.append(inputs["input_ids"])
        decisions = tuple(Decision(0, None, 1, 2) for _ in inputs["input_ids"])
        return SimpleNamespace(sequences=inputs["input_ids"], decisions=decisions)

    monkeypatch.setattr(flex, "generate", generate)
    evaluate.answer(flex, processor, exam(0, "test", 3), None, lambda: None)
    assert (asked[0] == 1).sum(-1).tolist() == [1, 1, 1]


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    pytest.importorskip("timm")
    needed = HOSTS_SINCE["tokenflex_composed"]
    if Version(transformers.__version__) < Version(needed):
        pytest.skip(f"composed models are served from transformers {needed} on")
    folder = tmp_path_factory.mktemp("composed")
    small = tiny(questions=30)
    return run(folder, seed=1, device="cpu", host="composed", levels="sandwich", plan=small), folder


def test_a_composed_host_goes_through_the_same_recipe(composed):
    report, folder = composed
    assert report["host"] == "composed"
    assert report["levels_per_step"] == "sandwich"
    assert [level["tokens_mean"] for level in report["levels"]] == [2, 4, 8, 16, 32]
    assert {"levels", "router", "random_router", "oracle", "seconds"} <= set(report)
    assert "the cells of the image" in (folder / "report.html").read_text()
    flex = AutoModelForImageTextToText.from_pretrained(folder / "model")
    assert isinstance(flex, tokenflex.FlexModel)
    assert type(flex.host).__name__ == "ComposedForConditionalGeneration"


def test_unknown_hosts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"host 'llama' isn't known; use llava-next, composed, qwen2\.5-vl"):
        run(tmp_path, host="llama")
    with pytest.raises(ConfigError, match="levels='some'; use one of all, sandwich"):
        run(tmp_path, levels="some")


def test_images_repeat_with_their_seed():
    one, same, other = (next(scenes(seed, "train", 1)) for seed in (5, 5, 6))
    assert one.image.tobytes() == same.image.tobytes() != other.image.tobytes()
    assert one.image.size == (128, 64)


def test_splits_share_no_scan():
    from tokenflex.quickstart.images import digit_scans

    train, test = digit_scans("train")[0], digit_scans("test")[0]
    assert len(train) + len(test) == 1797
    seen = {scan.tobytes() for scan in train}
    assert sum(scan.tobytes() in seen for scan in test) == 0


def test_every_digit_has_a_window_of_one_level_to_itself():
    """At that level no token sees two digits; at the next coarser one all tokens that see a digit see two or more."""
    seen = set()
    for scene in scenes(4, "train", 80):
        shown = scene.cells[..., 0] < 10
        fine = [question for question in scene.questions if question.fine]
        if not fine:
            continue
        assert shown.sum() == {(1, 1): 8, (1, 2): 8, (2, 2): 8, (2, 4): 4, (4, 4): 2}[SPACINGS[scene.spacing]]
        assert len(fine) == 2 * shown.sum()
        for place, (down, across) in enumerate(SPACINGS[: scene.spacing + 2]):
            windows = shown.reshape(ROWS // down, down, COLS // across, across).sum((1, 3))
            least = windows[windows > 0].min()
            assert windows.max() == 1 if place <= scene.spacing else least >= 2
        seen.add(scene.spacing)
    assert seen == {0, 1, 2, 3, 4}


def test_answers_are_what_the_cells_show():
    for image in scenes(3, "train", 30):
        shown = {int(digit): list(INKS)[ink] for digit, ink in image.cells.reshape(-1, 2) if digit < 10}
        for question in image.questions:
            if question.kind == "count":
                assert question.answer == ("none" if not shown else "one" if len(shown) == 1 else "many")
            if question.kind.startswith("ink"):
                assert question.answer == shown[int(question.question.split()[1])]
            if question.kind.startswith("digit"):
                assert shown[int(question.answer)] == question.question.split()[1]


def test_one_third_of_the_exam_is_fine_and_every_word_is_known():
    asked = exam(0, "test", 90)
    assert sum(question.fine for _, question in asked) == 30
    assert {question.kind for _, question in asked} == {*FINE_KINDS, *COARSE_KINDS}
    known = set(words())
    for _, question in asked:
        assert known.issuperset([*question.question.split(), question.answer])


def test_the_host_is_stock_and_seeded():
    (one, processor), (same, _) = seeded(3), seeded(3)
    assert type(one).__name__ == "LlavaNextForConditionalGeneration"
    assert all((p == q).all() for p, q in zip(one.parameters(), same.parameters(), strict=True))
    shape = processor.image_processor([next(scenes(0, "train", 1)).image], return_tensors="pt").pixel_values.shape
    assert tuple(shape) == (1, 3, 3, 64, 64)


def test_report_says_everything(result):
    report, folder = result
    assert report == json.loads((folder / "report.json").read_text())
    assert {"seed", "device", "seconds", "levels", *ROUTERS, *SEEING_LESS, "level_per_kind", "oracle"} <= set(report)
    assert report["fine_share"] == pytest.approx(1 / 3, abs=1e-3)
    assert [level["tokens_mean"] for level in report["levels"]] == [4, 8, 14, 28, 52]
    routers = [report[name] for name in (*ROUTERS, *SEEING_LESS, "level_per_kind")]
    escalated = [report[name] for name in ESCALATED]
    for entry in (*report["levels"], *routers, *escalated, report["oracle"]):
        assert set(entry["accuracy_by_kind"]) == {*FINE_KINDS, *COARSE_KINDS}
        assert entry["tower"] == 1.0
    for entry in escalated:
        assert 1 <= entry["passes_mean"] <= 2
        assert entry["escalate"]["risk"] == 0.2
    assert report["smaller_image"]["tokens_mean"] == 17  # the whole view alone, and a newline
    assert report["smaller_image"]["tower"] < 0.5
    most = report["levels"][0]["tokens_mean"] + report["levels"][-1]["tokens_mean"]
    assert report["levels"][0]["tokens_mean"] <= report["escalate"]["tokens_mean"] <= most
    for name in ("router", *SEEING_LESS):
        assert sum(sum(counts) for counts in report[name]["choices_by_kind"].values()) == 36
        assert sum(sum(counts) for counts in report[name]["choices_by_spacing"].values()) == 12
    assert set(report["level_per_kind"]["levels_by_kind"]) == {*FINE_KINDS, *COARSE_KINDS}
    assert len([name for name in report["seconds"] if name.startswith("stage")]) == 5
    page = (folder / "report.html").read_text()
    assert "<img" in page
    assert 'src="http' not in page
    assert "<script src" not in page


def test_the_model_it_leaves_loads(result):
    report, folder = result
    flex = AutoModelForImageTextToText.from_pretrained(folder / "model")
    assert isinstance(flex, tokenflex.FlexModel)
    assert flex.compressor.num_levels == 5
    assert flex.escalate.to_dict() == report["escalate"]["escalate"]


def test_levels_can_be_sizes_of_the_image(sized):
    report, folder = sized
    assert report["host"] == "qwen2.5-vl"
    assert [level["tokens_mean"] for level in report["levels"]] == [2, 8, 18, 32]
    towers = [level["tower"] for level in report["levels"]]
    assert towers == sorted(towers)
    assert towers[-1] == 1
    assert towers[0] < 0.1
    assert not {"reconstruction_router", "smaller_image"} & set(report)
    assert report["router"]["tower"] >= report["random_router"]["tower"]
    assert "drawn as the vision tower saw them" in (folder / "report.html").read_text()
    flex = AutoModelForImageTextToText.from_pretrained(folder / "model")
    assert flex.compressor.scaler.shares == (1 / 16, 1 / 4, 9 / 16, 1.0)


def test_sizes_need_a_host_of_any_size(tmp_path):
    with pytest.raises(ConfigError, match="images of any size; host 'llava-next' has one"):
        run(tmp_path, host="llava-next", levels="resolution")


def test_the_tower_is_counted_once_per_size():
    work = TowerWork({0.25: 10, 1.0: 50}, (0.25, 0.25, 1.0), looks=True)
    scores = torch.zeros(3)
    assert work.of(Decision(2, None, 8, 8)) == 50
    assert work.of(Decision(2, scores, 8, 8)) == 60
    assert work.of(Decision(1, scores, 8, 8)) == 10
    tried = (Tried(0, 2, 0.1, 0.5), Tried(1, 4, 0.2, 0.5), Tried(2, 8))
    assert work.of(Decision(2, None, 14, 8, tried)) == 60


def test_comparison_of_settings():
    """Level 1 is right everywhere, level 0 on the second half; the router takes level 1 for the first quarter."""
    count = 32
    questions = exam(0, "test", count)
    table = np.array([[0, 1], [1, 1]], dtype=bool).repeat(count // 2, axis=1)
    costs = np.array([2, 6])[:, None].repeat(count, axis=1)
    texts = ("",) * count
    once, work = np.ones(count), np.array([1.0, 4.0])[:, None].repeat(count, axis=1)
    levels = [GradedAnswers((str(i),) * count, table[i], costs[i], np.full(count, i), once, work[i]) for i in (0, 1)]
    picks = np.where(np.arange(count) < count // 4, 1, 0)
    places = np.arange(count)
    routed = GradedAnswers(texts, table[picks, places], costs[picks, places], picks, once, work[picks, places] + 1)
    said = tuple("1" if pick else "0" for pick in picks)
    unsure = GradedAnswers(said, table[picks, places], costs[0] + picks * costs[1], picks, once + picks, work[0])
    promise = tokenflex.Escalate(risk=0.1, confidence=0.9, threshold=0.5)
    routers = {"router": routed, "reconstruction_router": levels[0]}
    # It says level 1 for all, most of all for those that need it; half of the tokens lead to where they are needed.
    scores = np.stack([np.zeros(count), np.where(np.arange(count) < count // 2, 2.0, 1.0)], axis=1)
    blind = replace(levels[1], scores=scores)
    results = Results(levels, routers, {"escalate": (unsure, promise)}, levels[0], {"router_without_image": blind})
    found = evaluate.compare(results, questions, 0)
    assert [level["accuracy"] for level in found["levels"]] == [0.5, 1.0]
    assert found["router"]["accuracy"] == 0.75
    assert found["router"]["tokens_mean"] == found["random_router"]["tokens_mean"] == 3.0
    assert found["random_router"]["accuracy"] == pytest.approx(0.5 + 0.5 / 4, abs=0.02)
    assert found["reconstruction_router"]["accuracy"] == found["random_reconstruction"]["accuracy"] == 0.5
    assert found["oracle"]["accuracy"] == 1.0
    assert found["oracle"]["tokens_mean"] == 4.0
    assert [level["tower"] for level in found["levels"]] == [0.25, 1.0]
    assert found["router"]["tower"] == (0.75 * 2 + 0.25 * 5) / 4
    assert found["random_router"]["tower"] == (0.75 * 1 + 0.25 * 4) / 4
    assert found["smaller_image"] == found["levels"][0]
    levels_by_kind = found["level_per_kind"]["levels_by_kind"]
    needed = {question.kind for _, question in questions[: count // 2]}  # level 0 is wrong there
    assert levels_by_kind == {kind: int(kind in needed) for kind in {question.kind for _, question in questions}}
    assert found["level_per_kind"]["accuracy"] == 1.0
    assert found["router_without_image"]["accuracy"] == 1.0
    priced = found["router_without_image"][AT]
    assert priced["tokens_mean"] <= found["router"]["tokens_mean"], "a common price: all of a kind, or none"
    assert priced["accuracy"] == 0.5
    assert AT not in found["router"]
    assert found["escalate"]["tokens_mean"] == 2 + 6 / 4
    assert found["escalate"]["passes_mean"] == 1.25
    assert found["escalate"]["differs_from_finest"] == 0.75
    assert sum(sum(counts) for counts in found["router"]["choices_by_kind"].values()) == count


def test_unknown_devices_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="device 'tpu' isn't known"):
        run(tmp_path, device="tpu")
