"""Rules of the house that no linter knows."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tokenflex

ROOT = Path(tokenflex.__file__).parent
PLUGINS = ROOT.parent / "plugins"
OUTSIDE = sorted(PLUGINS.glob("*/src/**/*.py"))
FILES = [*sorted(ROOT.rglob("*.py")), *OUTSIDE]
NAMES = [str(path.relative_to(ROOT.parent)) for path in FILES]
PUBLIC = {"", "chat", "contracts", "errors", "images", "model", "ops", "testing", "training"}
"""What plugins may build on."""
NAMED = {"hosts", "scalers"}
"""Packages from which plugins may take what their ``__all__`` names, and nothing of the modules inside."""
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "core", "base", "manager", "stuff"}


@pytest.fixture(params=FILES, ids=NAMES)
def file(request):
    return request.param


def test_files_and_functions_stay_short(file):
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"


def test_names_say_what_lives_there(file):
    assert file.stem not in VAGUE


def test_hosts_are_called_never_edited(file):
    """No class is swapped, no forward replaced, no hook put on a host."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Attribute):
                assert target.attr not in ("__class__", "forward", "generate", "__bases__")
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("register_forward_hook", "register_forward_pre_hook", "__bases__")


def test_nothing_is_left_for_later(file):
    text = file.read_text(encoding="utf-8")
    for word in ("TODO", "FIXME", "XXX", "NotImplementedError"):
        assert word not in text


def test_parts_know_no_host(file):
    """What is particular to a family of hosts lives in its adapter; parts and models see contracts only."""
    place = file.relative_to(ROOT.parent).parts[1]
    if place in ("scalers", "routers", "voters", "policies", "compressor.py", "checkpoint.py"):
        assert "llava_next" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", OUTSIDE, ids=[str(path.relative_to(PLUGINS)) for path in OUTSIDE])
def test_plugins_use_the_public_interface_only(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found = [(node.module or "", alias.name) for alias in node.names]
        else:
            found = [(alias.name, "") for alias in node.names] if isinstance(node, ast.Import) else []
        for module, name in found:
            first, _, inside = module.partition(".")
            if first == "tokenflex" and inside in NAMED:
                assert name in importlib.import_module(module).__all__, f"{module}.{name} isn't public"
            elif first == "tokenflex":
                assert inside.partition(".")[0] in PUBLIC, f"{module} isn't public"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokenflex."):
            assert not any(alias.name.startswith("_") for alias in node.names)


def test_importing_is_light():
    script = "import sys, tokenflex; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_help_is_light():
    script = (
        "import sys\nfrom tokenflex.cli.main import build_parser\nbuild_parser().format_help()\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_package_is_typed():
    assert (ROOT / "py.typed").exists()
