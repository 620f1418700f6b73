"""The site of docs/: it builds without a warning, asks nobody for anything, and its reference has every public name."""

import importlib
import importlib.util
import re
import subprocess
import sys

import pytest

from tests.docs.fences import PAGES, ROOT
from tokenflex import catalog

TOOLS = ROOT / "docs" / "_site"
MODULES = ("contracts", "training", "evaluation", "profiling", "serving", "testing", "conversion", "composed")
PLAIN_DATA = {"READ_OFF", "HostInputs", "Need", "PaddingSide", "STAGES", "METRICS"}
"""Constants and names of types, which the pages of what uses them explain."""
REGISTRIES = {
    "scalers": catalog.SCALERS,
    "routers": catalog.ROUTERS,
    "voters": catalog.VOTERS,
    "policies": catalog.POLICIES,
    "confidences": catalog.CONFIDENCES,
}


def tool(name):
    spec = importlib.util.spec_from_file_location(f"site_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented(page):
    return set(re.findall(r"^::: (\S+)$", PAGES[f"docs/reference/{page}.md"], re.MULTILINE))


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_in_the_reference(name):
    public = set(importlib.import_module(f"tokenflex.{name}").__all__) - PLAIN_DATA
    assert {f"tokenflex.{name}.{one}" for one in public} <= documented(name)


def test_what_import_tokenflex_offers_is_in_the_reference():
    import tokenflex

    modules = {name for name in tokenflex.__all__ if name.islower() and (ROOT / "tokenflex" / name).is_dir()}
    names = set(tokenflex.__all__) - modules - {"errors", "images", "Decision", "Budget"}
    assert {f"tokenflex.{name}" for name in names} <= documented("tokenflex")
    assert {f"docs/reference/{name}.md" for name in (*modules, "errors", "images")} <= PAGES.keys()


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_built_in_part_is_in_the_reference(kind):
    text = PAGES[f"docs/reference/{kind}.md"]
    module = importlib.import_module(f"tokenflex.{kind}")
    bases = {f"tokenflex.{kind}.{name}" for name in module.__all__ if name[0].isupper()}
    assert {path.replace(":", ".") for path in REGISTRIES[kind].values()} | bases == documented(kind)
    assert all(f"| `{name}` |" in text for name in REGISTRIES[kind])


def test_names_of_the_reference_exist():
    for page in PAGES:
        if page.startswith("docs/reference/"):
            for path in documented(page.removeprefix("docs/reference/").removesuffix(".md")):
                module, _, name = path.rpartition(".")
                try:
                    importlib.import_module(path)
                except ModuleNotFoundError:
                    assert hasattr(importlib.import_module(module), name), path


GROUPED = """Do it.

Args:
    one: the first;
        it goes on.
    level, budget: as for `forward`.
    args, options: whatever
        else, with a colon: here.

    last: one.

Raises:
    ValueError, KeyError: stay as they are.
"""
SEPARATE = """Do it.

Args:
    one: the first;
        it goes on.
    level: as for `forward`.
    budget: as for `forward`.
    *args: whatever
        else, with a colon: here.

    **options: whatever
        else, with a colon: here.

    last: one.

Raises:
    ValueError, KeyError: stay as they are.
"""


def test_entries_of_several_names_become_several():
    entries = tool("entries")
    known = {"one", "level", "budget", "*args", "**options", "last"}
    assert entries.separate(GROUPED, known) == SEPARATE
    assert entries.separate(SEPARATE, known) == SEPARATE
    assert entries.separate("Attributes:\n    provider, version: of it.") == (
        "Attributes:\n    provider: of it.\n    version: of it."
    )
    assert entries.separate("Text, with commas: and\n    more, of it: here.") == (
        "Text, with commas: and\n    more, of it: here."
    )


def test_griffe_reads_every_docstring(caplog):
    """Entries are those of the signature, in the whole package; griffe warns where one isn't."""
    griffe = pytest.importorskip("griffe", reason="comes with the extra [docs]")
    package = griffe.load(
        "tokenflex", search_paths=[str(ROOT)], extensions=griffe.load_extensions(str(TOOLS / "grouped.py"))
    )
    (parameters,) = [
        one for one in package["model.loading.wrap"].docstring.parse("google") if one.kind.value == "parameters"
    ]
    assert {"scaler", "router", "voter", "policy"} <= {one.name for one in parameters.value}
    todo, read = [package], 0
    while todo:
        for member in todo.pop().members.values():
            if not member.is_alias:
                read += member.docstring is not None and bool(member.docstring.parse("google"))
                todo += [member] if member.is_module or member.is_class else []
    assert read > 1000
    assert [record.getMessage() for record in caplog.records if record.name.startswith("griffe")] == []


def test_every_command_is_described():
    from tokenflex.cli.main import COMMANDS

    commands = tool("commands")
    found = commands.commands()
    assert list(found) == [command.__name__.rpartition(".")[2] for command in COMMANDS]
    page = commands.described()
    for name, parser in found.items():
        own = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        for action in parser._actions:
            assert not action.option_strings or action.option_strings[-1] in own, (name, action)
    assert "- `--margin`, default `1.0`: Stage 4" in page.partition("## train\n")[2].partition("\n## ")[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="comes with the extra [docs]")
    pytest.importorskip("mkdocstrings", reason="comes with the extra [docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}


def test_the_site_builds_without_a_warning(site):
    assert {"index.html", "concepts.html", "reference/tokenflex.html", "repository/examples.html"} <= site.keys()
    assert "<code>--report-only OUT</code>" in site["reference/cli.html"]
    assert "Give a host fresh, untrained parts." in site["reference/tokenflex.html"]


def test_the_site_asks_nobody_for_anything(site):
    asking = re.compile(
        r"<(?:script|img|iframe)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*href=\"?(?:https?:)?//|@import|fonts\.g"
    )
    assert [name for name, text in site.items() if asking.search(text)] == []


def test_links_of_the_readme_lead_to_pages(site):
    for target in re.findall(r"href=\"([^\"#:]+\.html)", site["index.html"]):
        assert target in site or target.startswith("https"), target
