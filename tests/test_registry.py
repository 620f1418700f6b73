"""Finding parts by name: lazy, isolated, and clear about what is wrong."""

import subprocess
import sys

import pytest

from tokenflex import offered, registry, scalers
from tokenflex.contracts import HostAdapter
from tokenflex.errors import BrokenPluginError, DuplicateComponentError, UnknownComponentError
from tokenflex.scalers.stride import StrideScaler


def install(tmp_path, monkeypatch, name, points, version="1.2", code=""):
    """A distribution as pip leaves it: metadata with entry points, and a module."""
    info = tmp_path / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = "\n".join(f"{point} = {target}" for point, target in points.items())
    (info / "entry_points.txt").write_text(f"[tokenflex.scalers]\n{lines}\n")
    (tmp_path / f"{name.replace('-', '_')}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)


GOOD = "from tokenflex.scalers.stride import StrideScaler\nclass Mine(StrideScaler):\n    pass\nnumber = 3\n"


def test_built_in_names():
    own = {
        kind.kind: [name for name in kind.names() if kind.provider(name).distribution == "tokenflex"]
        for kind in registry.REGISTRIES
    }
    assert own["scaler"] == ["average-pool", "random", "resize", "resolution", "stride"]
    assert own["router"] == ["attention-mass", "avg", "constant", "random", "reconstruction"]
    assert own["voter"] == ["attention", "majority", "max-detail", "mean", "position-weighted", "quantile"]
    assert own["confidence"] == [
        "first-entropy", "first-margin", "first-probability", "mean-log-probability", "min-margin",
    ]  # fmt: skip
    assert own["policy"] == ["argmax", "budget", "constant", "fade"]
    assert {"llava", "llava_next", "qwen2_vl", "tokenflex_composed"} <= set(registry.hosts.names())
    assert len(registry.hosts.names()) >= 70
    for name in registry.hosts.names():
        assert issubclass(registry.hosts.get(name), HostAdapter)
    groups = [kind.group for kind in (registry.routers, registry.policies, registry.hosts)]
    assert groups == ["tokenflex.routers", "tokenflex.policies", "tokenflex.hosts"]


def test_installed_packages_are_found(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "good-plugin", {"mine": "good_plugin:Mine"}, code=GOOD)
    assert "mine" in scalers.names()
    assert "good_plugin" not in sys.modules
    mine = scalers.get("mine")
    assert issubclass(mine, StrideScaler)
    provider = scalers.provider("mine")
    assert (provider.distribution, provider.version) == ("good-plugin", "1.2")
    assert registry.scalers.name_of(mine) == "mine"


def test_a_broken_package_harms_nobody_else(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "bad-plugin", {"bad": "bad_plugin:Mine"}, code="import nothing_like_this")
    assert "bad" in scalers.names()
    assert scalers.get("stride") is StrideScaler
    with pytest.raises(
        BrokenPluginError, match=r"'bad' of bad-plugin 1.2 can't be imported: ModuleNotFoundError.*nothi"
    ):
        scalers.get("bad")


def test_what_is_no_scaler_is_refused(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "odd-plugin", {"odd": "odd_plugin:number"}, code=GOOD)
    with pytest.raises(BrokenPluginError, match="'odd' of odd-plugin is 3, which is no subclass of Scaler"):
        scalers.get("odd")


def test_two_providers_of_one_name_are_named(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "rival", {"stride": "rival:Mine"}, code=GOOD)
    with pytest.raises(DuplicateComponentError, match="'stride' is offered by rival and tokenflex; uninstall one"):
        scalers.get("stride")
    assert scalers.get("random")


def test_unknown_names_get_the_nearest_and_the_list():
    with pytest.raises(UnknownComponentError, match=r"no scaler is called 'strid'\. Did you mean 'stride'"):
        scalers.get("strid")
    with pytest.raises(UnknownComponentError, match=r"There are: .*average-pool, .*random, .*resize, .*stride"):
        scalers.get("zzz")


def test_notebooks_register_and_re_run_cells():
    registered = registry.scalers
    try:
        for _ in range(2):

            @scalers.register("from-a-cell")
            class Mine(StrideScaler):
                pass

        assert scalers.get("from-a-cell") is Mine
        with pytest.raises(DuplicateComponentError, match="already offered by this session"):
            scalers.register("from-a-cell")(StrideScaler)
        with pytest.raises(DuplicateComponentError, match="already offered by tokenflex"):
            scalers.register("stride")(Mine)
    finally:
        registered._added.pop("from-a-cell")


def test_temporary_names_go_away():
    class Mine(StrideScaler):
        pass

    with scalers.temporary("for-now", Mine):
        assert scalers.get("for-now") is Mine
    assert "for-now" not in scalers.names()


def test_listing_imports_no_part():
    script = (
        "import sys, tokenflex.registry as r\n"
        "[kind.names() for kind in (r.scalers, r.routers, r.voters, r.policies, r.hosts)]\n"
        "kinds = ('tokenflex.scalers.', 'tokenflex.routers.', 'tokenflex.voters.', 'tokenflex.hosts.')\n"
        "bad = [module for module in sys.modules if module.startswith(kinds)]\n"
        "assert not bad, bad\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_is_installed_is_read_once_until_something_is_installed(tmp_path, monkeypatch):
    reads = []
    real = offered.entry_points
    monkeypatch.setattr(offered, "entry_points", lambda **asked: reads.append(asked) or real(**asked))
    install(tmp_path, monkeypatch, "first-plugin", {"one": "first_plugin:Mine"}, code=GOOD)
    assert "one" in scalers.names()
    read = len(reads)
    assert "one" in scalers.names()
    assert scalers.provider("one").version == "1.2"
    assert len(reads) == read > 0
    install(tmp_path, monkeypatch, "second-plugin", {"two": "second_plugin:Mine"}, code=GOOD)
    assert {"one", "two"} <= set(scalers.names())
    assert len(reads) > read
