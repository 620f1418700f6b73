"""``tokenflex advise``: what a server is told, and what is refused."""

import json
import math

import pytest
import torch

import tokenflex
from tests.cli.test_evaluate import saved
from tests.hosts.processed import image
from tests.hosts.served import served
from tokenflex.cli import advise, main
from tokenflex.hosts.grid import GridAdapter
from tokenflex.quickstart.host import seeded


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), *seeded(0))


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "image.png"
    image(64, 128).save(path)
    return str(path)


@pytest.fixture
def call(capsys):
    def run(*words):
        code = main.main(["advise", *words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_what_is_told(call, model, shown):
    code, out, _ = call(shown, "what colour ?", "--model", model, "--device", "cpu", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["image"] == shown
    assert told["levels"] == len(told["scores"]) == 5
    assert told["level"] == max(range(5), key=lambda level: told["scores"][level])
    assert told["tokens"] <= told["of"]
    assert told["mm_processor_kwargs"] == {}  # LLaVA-NeXT's processor has none
    scale = math.sqrt(told["tokens"] / told["of"])
    assert told["resize"] == {"width": round(128 * scale), "height": round(64 * scale)}


@pytest.mark.parametrize(("level", "detail"), [(0, "low"), (2, "auto"), (4, "high"), (-1, "high")])
def test_detail(call, model, shown, level, detail):
    code, out, _ = call(shown, "what ?", "--model", model, "--device", "cpu", "--level", str(level), "--json")
    told = json.loads(out)
    assert (code, told["detail"], told["scores"], told["level"]) == (0, detail, None, level % 5)
    assert (told["tokens"] == told["of"]) == (detail == "high")


def test_words(call, model, shown):
    code, out, _ = call(shown, "what ?", "--model", model, "--device", "cpu", "--budget", "ratio=0.3")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["level", "tokens", "processor", "resize", "detail"]
    assert "takes no size per image" in out


def test_a_host_with_parts(call, shown, model, tmp_path):
    host, processor = seeded(0)
    host.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    code, out, _ = call(shown, "what ?", "--host", str(tmp_path), "--parts", model, "--device", "cpu", "--json")
    assert code == 0
    assert json.loads(out)["of"] == json.loads(call(shown, "what ?", "--model", model, "--json")[1])["of"]


def test_settings_of_a_processor():
    """Those of a host whose processor takes them."""
    tiny = served("qwen2_vl")
    host = tiny.build()
    torch.manual_seed(0)
    flex = tokenflex.wrap(host, scaler="resolution", adapter=GridAdapter(host, scope="prompt"))
    batch = tiny.batch(host.config, ((1, "image", 2),), side="left")

    class Processor:
        tokenizer = type("Tokenizer", (), {"bos_token": None})

        def apply_chat_template(self, messages, **options):
            return messages[0]["content"][1]["text"]

        def __call__(self, images, text, return_tensors):
            return type("Batch", (dict,), {"to": lambda self, device: self})(batch)

    class Front:
        processor = Processor()

        def __init__(self):
            self.flex, self.decide = flex, flex.decide

    told = advise.advise(Front(), image(32, 32), "what ?", level=2)
    tokens = flex.adapter.processor_kwargs(flex.adapter.read(batch), 0, told["tokens"])
    assert told["mm_processor_kwargs"] == tokens
    assert set(tokens["size"]) == {"shortest_edge", "longest_edge"}
    assert json.dumps(told)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere.png", "what ?"), "no file"),
        (("{shown}", " "), "question is empty"),
        (("{shown}", "what ?", "--host", "somewhere"), "--host needs --parts"),
        (("{shown}", "what ?", "--parts", "somewhere"), "--parts need the --host"),
        (("{shown}", "what ?", "--model", "somewhere", "--host", "else"), "either --model"),
        (("{shown}", "what ?", "--model", "no/where/here"), "doesn't exist"),
        (("{shown}", "what ?", "--model", "{model}", "--level", "9"), "level"),
        (("{shown}", "what ?", "--model", "{model}", "--budget", "share=2"), "share"),
    ],
)
def test_what_is_refused(call, model, shown, words, message):
    code, out, error = call(*(word.format(shown=shown, model=model) for word in words))
    assert (code, out) == (1, "")
    assert message in error


def test_a_text_file_is_no_image(call, model, tmp_path):
    (tmp_path / "a.png").write_text("not an image")
    code, _, error = call(str(tmp_path / "a.png"), "what ?", "--model", model)
    assert code == 1
    assert "can't be read" in error
