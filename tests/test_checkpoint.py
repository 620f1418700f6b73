"""The parts' two files: what is in them is sound, or is refused by name."""

import dataclasses
import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tokenflex
from tests.killed import killed_at_renaming
from tokenflex import checkpoint, registry
from tokenflex.errors import ConfigError
from tokenflex.testing.tiny_hosts import tiny_llava_next


@pytest.fixture
def flex():
    return tokenflex.wrap(tiny_llava_next())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(flex, tmp_path, value):
    with torch.no_grad():
        flex.compressor.router.mlp[0].bias[1] = value
    flex.save_parts(tmp_path)
    with pytest.raises(ConfigError, match=r"tokenflex\.safetensors: NaN or infinite values in 'router\.mlp\.0\.bias'"):
        tokenflex.load_parts(tmp_path, host=tiny_llava_next())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_every_type_of_weights_is_looked_at(dtype):
    sound = {"a": torch.ones(3).to(dtype), "b": torch.arange(3), "c": torch.empty(3, device="meta")}
    checkpoint.require_sound(sound, "here")
    with pytest.raises(ConfigError, match="here: NaN or infinite values in 'd'"):
        checkpoint.require_sound({**sound, "d": torch.tensor([0.0, float("nan")]).to(dtype)}, "here")


def test_many_unsound_weights_are_counted():
    state = {name: torch.full((1,), float("nan")) for name in "abcde"}
    with pytest.raises(ConfigError, match="'a', 'b', 'c' and 2 more"):
        checkpoint.require_sound(state, "here")


def marked(flex, value):
    """The parts with one setting and one weight that tell of which save they are."""
    config = dataclasses.replace(flex.compressor.router.config, text_tokens=value)
    made = tokenflex.wrap(flex.host, router=config)
    state = {name: torch.full_like(tensor, value) for name, tensor in made.compressor.state_dict().items()}
    return checkpoint.describe(made.compressor, made.adapter), state


def belongs_together(found):
    spec, state = found
    return {float(tensor.flatten()[0]) for tensor in state.values()} == {
        spec["parts"]["router"]["config"]["text_tokens"]
    }


def test_who_reads_between_the_two_files_of_a_save_sees_one_save(flex, tmp_path, monkeypatch):
    checkpoint.save(tmp_path, *marked(flex, 1))
    found, write = [], checkpoint.write_whole

    def between(path, content):
        found.append(checkpoint.load(tmp_path))
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_whole", between)
    checkpoint.save(tmp_path, *marked(flex, 2))
    assert [one[0]["parts"]["router"]["config"]["text_tokens"] for one in found] == [2]
    assert belongs_together(found[0])
    assert checkpoint.load(tmp_path)[0] == found[0][0]


@pytest.mark.parametrize("name", ["tokenflex.json", "tokenflex.safetensors"])
def test_a_save_between_the_reading_of_the_two_files(flex, tmp_path, monkeypatch, name):
    """A whole save happens before either file is read."""
    checkpoint.save(tmp_path, *marked(flex, 1))
    whole, seen, opened = marked(flex, 2), [], Path.open

    def reading(self, *args, **kwargs):
        if self.name == name and not seen:
            seen.append(name)
            checkpoint.save(tmp_path, *whole)
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", reading)
    assert belongs_together(checkpoint.load(tmp_path))
    assert seen == [name]


def test_savers_into_one_folder_take_turns(flex, tmp_path, monkeypatch):
    waits, write, real = threading.Event(), checkpoint.write_whole, checkpoint.locked
    one, other, threads = marked(flex, 1), marked(flex, 2), []
    monkeypatch.setattr(checkpoint, "locked", lambda path: real(path, waiting=waits.set))

    def between(path, content):
        if not threads:
            threads.append(threading.Thread(target=checkpoint.save, args=(tmp_path, *other)))
            threads[0].start()
            assert waits.wait(60)
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_whole", between)
    checkpoint.save(tmp_path, *one)
    threads[0].join()
    assert json.loads((tmp_path / "tokenflex.json").read_text())["parts"]["router"]["config"]["text_tokens"] == 2
    assert belongs_together(checkpoint.load(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenflex.json", "tokenflex.safetensors"]


@pytest.mark.parametrize("call", [0, 1])
def test_killed_before_either_file_is_renamed_one_save_is_there(flex, tmp_path, call):
    checkpoint.save(tmp_path, *marked(flex, 1))
    again = marked(flex, 2)
    killed_at_renaming(lambda: checkpoint.save(tmp_path, *again), call)
    found = checkpoint.load(tmp_path)
    assert found[0]["parts"]["router"]["config"]["text_tokens"] == call + 1
    assert belongs_together(found)
    checkpoint.save(tmp_path, *again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenflex.json", "tokenflex.safetensors"]


def changed(folder, change):
    """A description that was edited by hand, and says so by lacking its digest."""
    path = folder / "tokenflex.json"
    spec = json.loads(path.read_text())
    del spec["weights"]
    change(spec)
    path.write_text(json.dumps(spec))


def test_files_of_versions_without_a_digest_are_read(flex, tmp_path):
    flex.save_parts(tmp_path)
    changed(tmp_path, lambda spec: None)
    state = load_file(tmp_path / "tokenflex.safetensors")
    save_file(state, tmp_path / "tokenflex.safetensors")
    spec, found = checkpoint.load(tmp_path)
    assert spec == json.loads(json.dumps(checkpoint.describe(flex.compressor, flex.adapter)))
    assert all(torch.equal(state[name], found[name]) for name in state)


def test_a_description_may_be_edited_and_read_only_folders_read(flex, tmp_path):
    flex.save_parts(tmp_path)
    changed(tmp_path, lambda spec: spec["parts"]["policy"].update(name="constant", config={"level": 1}))
    tmp_path.chmod(0o555)
    try:
        assert checkpoint.load(tmp_path)[0]["parts"]["policy"]["name"] == "constant"
    finally:
        tmp_path.chmod(0o755)


def test_weights_of_another_save_are_refused(flex, tmp_path):
    flex.save_parts(tmp_path)
    state = load_file(tmp_path / "tokenflex.safetensors")
    save_file({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "tokenflex.safetensors")
    with pytest.raises(ConfigError, match=r"was saved with other weights .* remove the key 'weights'"):
        checkpoint.load(tmp_path)


def test_equal_parts_make_equal_files(flex, tmp_path):
    for name in ("a", "b"):
        flex.save_parts(tmp_path / name)
    for file in ("tokenflex.json", "tokenflex.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


DAMAGED = {
    "a list": lambda path: path.write_text("[]"),
    "text that is no text": lambda path: path.write_bytes(b"\xff\xfe{}"),
    "no object as host": lambda path: changed(path.parent, lambda spec: spec.update(host=[])),
    "no object as parts": lambda path: changed(path.parent, lambda spec: spec.update(parts="router")),
    "no object as a part": lambda path: changed(path.parent, lambda spec: spec["parts"].update(router=3)),
    "no name": lambda path: changed(path.parent, lambda spec: spec["parts"]["router"].update(name=["avg"])),
    "no settings": lambda path: changed(path.parent, lambda spec: spec["parts"]["router"].update(config=None)),
    "half of the weights": lambda path: path.with_suffix(".safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}"),
    "unknown options": lambda path: changed(path.parent, lambda spec: spec["host"]["options"].update(code="x")),
    "unusable options": lambda path: changed(path.parent, lambda spec: spec["host"]["options"].update(marker=3)),
    "no object as options": lambda path: changed(path.parent, lambda spec: spec["host"].update(options=["unpad"])),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_in_plain_words(flex, tmp_path, name):
    flex.save_parts(tmp_path)
    DAMAGED[name](tmp_path / "tokenflex.json")
    with pytest.raises(ConfigError):
        tokenflex.load_parts(tmp_path, host=flex.host)


def test_tensors_that_do_not_fit_are_named_as_text(flex, tmp_path):
    flex.save_parts(tmp_path)
    state = load_file(tmp_path / "tokenflex.safetensors")
    state["x\x1b[2J"] = state.pop("voter.weight")
    state["router.mlp.0.bias"] = torch.zeros(3)
    changed(tmp_path, lambda spec: None)
    save_file(state, tmp_path / "tokenflex.safetensors")
    with pytest.raises(ConfigError, match=r"missing tensors \['voter\.weight'\], unknown .*0\.bias \(3,\)") as caught:
        tokenflex.load_parts(tmp_path, host=flex.host)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("provider", ["tokenflex-other", "a", "A.b_c-1"])
def test_who_offers_an_unknown_part_is_told_as_the_file_s_word(flex, tmp_path, provider):
    flex.save_parts(tmp_path)
    changed(tmp_path, lambda spec: spec["parts"]["router"].update(name="other", provider=provider, version="1.0"))
    with pytest.raises(ConfigError, match=rf"The file says .*{provider} .*trust.*pip install {provider}\."):
        tokenflex.load_parts(tmp_path, host=flex.host)


@pytest.mark.parametrize(
    "provider", ["x --index-url http://a", "a\x1b[31m", "a\n", "git+https://a/b", "../a", "", None, 3, "-r", "a" * 200]
)
def test_a_file_chooses_no_command_to_run(flex, tmp_path, provider):
    flex.save_parts(tmp_path)
    said = {"name": "o\x1b[2J", "provider": provider, "version": "1\x07"}
    changed(tmp_path, lambda spec: spec["parts"]["router"].update(said))
    with pytest.raises(ConfigError) as caught:
        tokenflex.load_parts(tmp_path, host=flex.host)
    assert "pip install" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_parts_of_a_notebook_are_to_be_registered_again(flex, tmp_path):
    flex.save_parts(tmp_path)
    changed(tmp_path, lambda spec: spec["parts"]["router"].update(name="mine", provider="this session", version=""))
    with pytest.raises(ConfigError, match="registered in a notebook or script; register it again"):
        tokenflex.load_parts(tmp_path, host=flex.host)


def test_options_go_to_the_constructor_they_are_passed_on_to(flex):
    class Mine(type(flex.adapter)):
        model_types = ("mine",)

        def __init__(self, host, *, extra=1, **options):
            super().__init__(host, **options)
            self.extra = extra

        refusal = classmethod(lambda cls, host: None)

    with registry.hosts.temporary("llava_next_of_mine", Mine), pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex.host.config, "model_type", "llava_next_of_mine", raising=False)
        made = checkpoint.adapter_for(flex.host, {"extra": 2, "scope": "prompt"})
        assert (made.extra, made.scope) == (2, "prompt")
        with pytest.raises(ConfigError, match="aren't all known to Mine"):
            checkpoint.adapter_for(flex.host, {"host": flex.host})
