"""``tokenflex plugins`` and ``tokenflex check``: what is installed, and whether it keeps its contract."""

import json

import pytest

from tests.test_registry import GOOD, install
from tokenflex import scalers
from tokenflex.cli.main import main
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.scalers.stride import StrideScaler

PLAIN = '''
from dataclasses import dataclass

from tokenflex.scalers.average_pool import AveragePoolScaler

number = 3


class Odd(AveragePoolScaler):
    """Forgets the type of its features."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AveragePoolScaler.Config):
        windows: tuple = ((2, 2), (1, 1))

    def scale(self, tokens, level):
        scaled = super().scale(tokens, level)
        return type(scaled)(scaled.features.double(), scaled.assignment, scaled.grid, averages=True)
'''


def printed(capsys, *words):
    code = main(words)
    return code, capsys.readouterr()


def test_everything_is_listed_as_json(capsys, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "fine-plugin", {"mine": "fine_plugin:Mine"}, code=GOOD)
    install(tmp_path, monkeypatch, "sad-plugin", {"bad": "sad_plugin:Mine"}, code="import nothing_like_this")
    install(tmp_path, monkeypatch, "rival", {"stride": "rival:Mine"}, code=GOOD)
    code, out = printed(capsys, "plugins", "--json")
    assert code == 0
    rows = json.loads(out.out)
    assert len({(row["kind"], row["name"]) for row in rows}) == len(rows)
    found = {(row["kind"], row["name"]): row for row in rows}
    assert found["scaler", "mine"] == {
        "kind": "scaler", "name": "mine", "provider": "fine-plugin", "version": "1.2", "state": "ok", "cause": "",
        "summary": StrideScaler.__doc__.split("\n")[0],
    }  # fmt: skip
    assert found["scaler", "bad"]["state"] == "broken"
    assert "nothing_like_this" in found["scaler", "bad"]["cause"]
    assert found["scaler", "stride"]["provider"] == "tokenflex and rival"
    assert found["scaler", "stride"]["state"] == "broken"
    assert found["router", "avg"]["state"] == "ok"
    assert found["router", "avg"]["summary"].startswith("Every token of every level")
    assert found["host", "llava_next"]["provider"] == "tokenflex"
    assert {row["kind"] for row in rows} == {"scaler", "router", "voter", "policy", "confidence", "host"}


def test_the_table_leaves_built_in_hosts_out(capsys):
    _, out = printed(capsys, "plugins")
    assert "average-pool" in out.out
    assert "llava_next" not in out.out
    assert "built-in hosts" in out.out
    _, out = printed(capsys, "plugins", "voter")
    assert "majority" in out.out
    assert "average-pool" not in out.out
    code, out = printed(capsys, "plugins", "voters")
    assert code == 1
    assert "no such kind; there are scaler, router, voter, policy, confidence, host" in out.err


def test_a_conforming_part(capsys):
    code, out = printed(capsys, "check", "average-pool", "--json")
    assert code == 0
    told = json.loads(out.out)
    assert told == {
        "part": "AveragePoolScaler", "passed": 20, "total": 20, "skipped": {}, "expected_failures": {}, "failures": {}
    }  # fmt: skip


def test_names_that_two_kinds_share(capsys):
    code, out = printed(capsys, "check", "random")
    assert code == 0
    assert out.out.startswith("RandomScaler and RandomRouter: 34 of 35 checks passed")
    assert "skipped: router: gradients-reach-parameters" in out.out
    _, out = printed(capsys, "check", "random", "--kind", "scaler")
    assert out.out.startswith("RandomScaler: 20 of 20 checks passed")


def test_a_class_in_the_current_folder(capsys, tmp_path, monkeypatch):
    (tmp_path / "odd_parts.py").write_text(PLAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    code, out = printed(capsys, "check", "odd_parts:Odd", "--json")
    told = json.loads(out.out)
    assert code == 1
    assert list(told["failures"]) == ["dtype-is-kept"]
    assert "turns bfloat16 into torch.float64" in told["failures"]["dtype-is-kept"]
    reason = "dtype-is-kept=a reason"
    code, out = printed(capsys, "check", "odd_parts:Odd", "--json", "--expect", reason)
    told = json.loads(out.out)
    assert told["expected_failures"] == {"dtype-is-kept": "a reason"}
    assert told["failures"] == {}
    assert code == 0


def test_an_unexpected_pass_fails(capsys):
    code, out = printed(capsys, "check", "average-pool", "--json", "--expect", "stays-finite=once")
    assert code == 1
    assert "expected to fail (once), and it passes" in json.loads(out.out)["failures"]["stays-finite"]


def test_registered_hosts_are_tried_on_a_tiny_model(capsys):
    code, out = printed(capsys, "check", "llava", "--json")
    assert code == 0
    told = json.loads(out.out)
    assert told["passed"] + len(told["skipped"]) == told["total"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["avgg"], "nothing is called 'avgg'. Did you mean 'avg'?"),
        (["avg", "--kind", "rooter"], "--kind rooter: there are scaler, router, voter, policy, confidence, host"),
        (["quantile", "--set", "share=2.0"], "can't be built with {'share': 2.0}: share=2.0 is no share"),
        (["quantile", "--set", "shore=2"], "unknown setting(s) ['shore']"),
        (["quantile", "--set", "share"], "'share': write --set KEY=VALUE"),
        (["quantile", "--expect", "no-such-check=because"], "name no check or give no reason"),
        (["no_such_module:Thing"], "can't be imported: ModuleNotFoundError"),
        (["tokenflex.scalers.average_pool:PYRAMID"], "not a class"),
        (["tokenflex.errors:ConfigError"], "is no scaler, router, voter, policy, confidence or host"),
        (["tokenflex.hosts.grid:GridAdapter"], "a host adapter, which is checked on a model"),
    ],
)
def test_refusals_say_how_to_mend_it(capsys, words, message):
    code, out = printed(capsys, "check", *words)
    assert code == 1
    assert message in out.err


def test_temporary_parts_are_checked_by_name(capsys):
    with scalers.temporary("for-now", AveragePoolScaler):
        assert printed(capsys, "check", "for-now")[0] == 0
    assert printed(capsys, "check", "for-now")[0] == 1
