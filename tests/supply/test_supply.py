"""Dependencies are listed with their licences, and each has a lowest version."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.supply import licences

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIRECT = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
    if not line.startswith("tokenflex")
]


def test_every_dependency_has_a_lowest_version():
    open_ended = [str(one) for one in DIRECT if not any(s.operator in (">=", "==") for s in one.specifier)]
    assert open_ended == []


def test_every_direct_dependency_of_users_is_listed_with_its_licence():
    page = licences.PAGE.read_text(encoding="utf-8")
    listed = {line.split(" | ")[0].strip("| ") for line in page.splitlines() if line.startswith("| ")}
    wanted = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in licences.EXTRAS if extra)]
    missing = {canonicalize_name(Requirement(line).name) for lines in wanted for line in lines} - listed - {"tokenflex"}
    assert missing == set(), "python -m tests.supply.licences makes the page anew"


def test_no_dependency_asks_more_than_weak_copyleft():
    assert [row for row in licences.rows() if row[2] not in ("free", "weak copyleft", "vendor")] == []


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("MIT", "free"),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", "free"),
        ("Mozilla Public License 2.0 (MPL 2.0)", "weak copyleft"),
        ("LicenseRef-NVIDIA-Proprietary", "vendor"),
        ("GNU Affero General Public License v3", "look"),
        ("CC-BY-NC-4.0", "look"),
        ("not said", "look"),
    ],
)
def test_kinds_of_licences(said, kind):
    assert licences.kind(said) == kind


def test_the_closure_goes_through_what_dependencies_need():
    core = licences.closure("")
    assert {"torch", "transformers", "sympy", "tqdm"} <= set(core)
    assert "starlette" not in core
    assert "starlette" in licences.closure("serve")
    assert metadata.version("torch") == core["torch"].version


def test_the_audit_of_known_faults_is_a_recipe_and_a_job():
    assert re.search(r"^audit", (ROOT / "justfile").read_text(encoding="utf-8"), re.MULTILINE)
