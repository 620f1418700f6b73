"""What is in the wheel and in the source distribution, and what PyPI would show."""

import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import tokenflex

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    (built,) = SdistBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with tarfile.open(built) as archive:
        return {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    skipped = ("__pycache__", ".pyc")
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "tokenflex").rglob("*") if path.is_file()}
    package = {name for name in package if not any(word in name for word in skipped)}
    assert {name for name in wheel if ".dist-info/" not in name} == package
    assert {"tokenflex/py.typed", "tokenflex/quickstart/report.html.jinja"} <= set(wheel)


def test_the_wheel_has_its_licence_its_command_and_its_extras(wheel):
    named = {name.split(".dist-info/")[1]: content.decode() for name, content in wheel.items() if ".dist-info/" in name}
    assert "Apache License" in named["licenses/LICENSE"]
    assert "tokenflex = tokenflex.cli.main:main" in named["entry_points.txt"]
    assert {"quickstart", "serve", "eval"} <= set(
        re.findall(r"^Provides-Extra: (.+)$", named["METADATA"], re.MULTILINE)
    )


def test_the_source_distribution_can_run_its_own_tests(source):
    wanted = {
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "LICENSE",
        "pyproject.toml",
        "tests/conftest.py",
        "docs/parity.md",
    }
    assert wanted <= source
    assert not [name for name in source if name.startswith(("runs/", "quickstart/", "plugins/", ".venv"))]


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == tokenflex.__version__


def test_templates_are_yaml():
    import yaml

    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff"]
    assert all(isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict) for path in files)
