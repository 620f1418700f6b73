"""The tree of tests mirrors the package: what tests a package or a module is found without a search."""

from pathlib import Path

import pytest

import tokenflex

PACKAGE = Path(tokenflex.__file__).parent
TESTS = PACKAGE.parent / "tests"
OTHERS = {
    "architecture": "rules about the code itself",
    "benchmarks": "the folder benchmarks/",
    "clients": "other libraries that use a model: transformers, TRL, PEFT",
    "docs": "the pages of docs/",
    "examples": "the folder examples/",
    "hf_suite": "transformers' own tests, run on a model of ours; no tests themselves",
    "parity": "one published implementation, compared with several packages at once",
    "parts": "what built-in parts of several kinds have in common, or do together",
    "supply": "dependencies and distributions",
    "torture": "damaged files, killed processes and odd requests, over the whole package",
}
"""Folders of tests that mirror no package, and what they are about."""
STAND_INS = PACKAGE / "testing" / "zoo"
"""Tiny hosts that tests are run on; their modules are no subject, so a test may have the name of one."""
FOLDERS = sorted({path.parent.relative_to(TESTS) for path in TESTS.rglob("*.py")} - {Path()})
MIRRORED = sorted(path for path in TESTS.rglob("test_*.py") if path.relative_to(TESTS).parts[0] not in OTHERS)


def is_package(folder: Path) -> bool:
    return (PACKAGE / folder / "__init__.py").is_file()


def misplaced(test: Path) -> list[str]:
    """The packages with a module of a test's name, where the test stands in the folder of none of them."""
    name, own = test.stem.removeprefix("test_"), test.relative_to(TESTS).parent
    homes = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob(f"{name}.py") if path.parent != STAND_INS}
    of_the_whole_package = name == own.name
    return [] if own in homes or of_the_whole_package else sorted(map(str, homes))


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_every_folder_has_its_package_or_its_reason(folder):
    assert is_package(folder) or folder.parts[0] in OTHERS


@pytest.mark.parametrize("name", OTHERS)
def test_other_folders_are_there_and_are_no_package(name):
    assert (TESTS / name).is_dir()
    assert not is_package(Path(name))


@pytest.mark.parametrize("test", MIRRORED, ids=[str(path.relative_to(TESTS)) for path in MIRRORED])
def test_a_test_of_a_module_stands_in_the_folder_of_its_package(test):
    assert misplaced(test) == []


def test_what_stands_elsewhere_is_seen():
    assert misplaced(TESTS / "ops" / "test_registry.py") == ["."]
    assert misplaced(TESTS / "training" / "test_timing.py") == ["profiling"]
    assert misplaced(TESTS / "ops" / "test_of_no_module.py") == []
