"""The class as lmms-eval calls it, without lmms-eval around it."""

import json

import pytest

from tokenflex.errors import ConfigError, DataError

pytest.importorskip("lmms_eval", reason="lmms-eval isn't installed")

from lmms_eval.api.instance import GenerationResult, Instance, unwrap_generation_output

from tokenflex_lmms_eval.model import TokenFlex


@pytest.fixture
def requests(image):
    """Make requests of a task ``t``; a document is (images, words)."""

    def make(model, documents, **gen_kwargs):
        model.task_dict["t"] = {"test": documents}

        def messages(document):
            images, words = document
            parts = [{"type": "image", "url": image(number)} for number in images]
            return [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]

        return [
            Instance(
                request_type="generate_until",
                arguments=(words, messages, {"max_new_tokens": 4, **gen_kwargs}, place, "t", "test"),
                idx=0,
                metadata={"task": "t", "doc_id": place, "repeats": 1},
            )
            for place, (_, words) in enumerate(documents)
        ]

    return make


DOCUMENTS = [((0,), "w1"), ((1, 2), "w1 w2 w3"), ((), "w4 w5"), ((3,), "w6 w7 w8 w9")]


def build(saved, **given):
    return TokenFlex(model=saved / "model", device="cpu", **given)


def told(results):
    return [(result.text, result.token_counts.to_dict()) for result in results]


def test_order_is_restored_and_batches_change_nothing(saved, requests):
    one, many = build(saved), build(saved, batch_size="3")
    expected = told(one.generate_until(requests(one, DOCUMENTS)))
    assert told(many.generate_until(requests(many, DOCUMENTS))) == expected
    assert [len(counts["levels"]) for _, counts in expected] == [1, 2, 0, 1]
    backwards = many.generate_until(requests(many, DOCUMENTS[::-1]))
    assert told(backwards) == expected[::-1]


def test_lmms_eval_reads_the_counts(saved, requests):
    model = build(saved, level=0)
    (result, *_) = model.generate_until(requests(model, DOCUMENTS))
    assert isinstance(result, GenerationResult)
    text, counts = unwrap_generation_output(result)
    assert text == result.text
    known = counts.to_dict()
    assert known["input_tokens"] == known["visual_tokens"] + 5
    assert (known["output_tokens"], known["levels"]) == (4, [0])
    assert known["visual_tokens"] < known["finest_tokens"]


def test_requests_with_other_settings_do_not_share_a_batch(saved, requests):
    model = build(saved, batch_size=4)
    short = requests(model, DOCUMENTS, max_new_tokens=1)
    mixed = [*requests(model, DOCUMENTS), *short]
    counts = [result.token_counts.output_tokens for result in model.generate_until(mixed)]
    assert counts == [4, 4, 4, 4, 1, 1, 1, 1]


def test_the_log_counts_repeats_and_leaves_out_what_only_keeps_step(saved, requests, tmp_path):
    model = build(saved, log=tmp_path / "log.jsonl")
    asked = requests(model, DOCUMENTS)
    again = requests(model, DOCUMENTS)[0]
    again.metadata["__padding_only__"] = True
    results = model.generate_until([*asked, asked[1], again])
    assert len(results) == 6
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["doc_id"], line["repeat"]) for line in lines] == [(0, 0), (1, 0), (2, 0), (3, 0), (1, 1)]
    assert [line["answer"] for line in lines[:4]] == [result.text for result in results[:4]]
    model.generate_until(asked[:1])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["doc_id"], line["repeat"]) for line in lines[-2:]] == [(1, 1), (0, 1)]


def test_a_log_that_exists_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(ConfigError, match="exists already"):
        TokenFlex(model=tmp_path / "nowhere", log=tmp_path / "log.jsonl")


def test_nothing_is_swallowed(saved, requests, monkeypatch, tmp_path):
    model = build(saved, log=tmp_path / "log.jsonl")
    asked = requests(model, DOCUMENTS)
    asked[2].arguments = (asked[2].args[0], lambda document: [{"role": "user", "content": [{"type": "audio"}]}],
                          *asked[2].args[2:])  # fmt: skip
    with pytest.raises(DataError, match="task t, document 2: a content item of type 'audio'"):
        model.generate_until(asked)

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(model.flex), "generate", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.generate_until(requests(model, DOCUMENTS))
    with pytest.raises(ConfigError, match="speed can't be honoured"):
        model.generate_until(requests(model, DOCUMENTS, speed=2))
    assert list(tmp_path.iterdir()) == []


def test_no_requests(saved):
    assert build(saved).generate_until([]) == []


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until_multi_round"])
def test_other_kinds_of_tasks_are_refused(saved, requests, kind):
    model = build(saved)
    with pytest.raises(ConfigError, match=r"t (asks for likelihoods|goes over several rounds).*generate_until"):
        getattr(model, kind)(requests(model, DOCUMENTS))


def test_from_an_argument_string(saved):
    text = f"host={saved / 'host'},parts={saved / 'parts'},budget=ratio:0.3,batch_size=3,max_new_tokens=7"
    options = {"batch_size": 1, "max_batch_size": None, "device": "cpu"}
    settings = TokenFlex.create_from_arg_string(text, options).settings
    assert (settings.batch_size, settings.max_new_tokens, settings.budget.ratio) == (3, 7, 0.3)


def test_memory_is_given_back(saved):
    model = build(saved)
    model.clean()
    assert not hasattr(model, "flex")
    assert (model.rank, model.world_size, str(model.device)) == (0, 1, "cpu")
