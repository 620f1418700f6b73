"""Links between pages lead somewhere: files are there, and headings."""

import re
from pathlib import Path

import pytest

from tests.docs.fences import PAGES, ROOT, without_blocks

LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)|<(?:a|img)\s[^>]*(?:href|src)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} (.+?)\s*$", re.MULTILINE)
OTHERS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "examples").rglob("*.md"))]
    if path.exists()
}


def links(text: str) -> list[str]:
    """Targets, but for other sites'."""
    found = [one or other for one, other in LINK.findall(text)]
    return [target for target in found if not re.match(r"[a-z][a-z+.-]*:", target)]


def anchors(page: str) -> set[str]:
    """As GitHub makes them, and as mkdocs.yml asks for."""
    found: set[str] = set()
    for heading in HEADING.findall(without_blocks(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        repeated = next(n for n in range(100) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{repeated}" if repeated else slug)
    return found


def broken(place: str, text: str) -> list[str]:
    """Links of a file that lead nowhere."""
    wrong = []
    for target in links(text):
        path, _, anchor = target.partition("#")
        there = (ROOT / place).parent / path if path else ROOT / place
        if not there.exists():
            wrong.append(target)
        elif anchor:
            page = str(there.resolve().relative_to(ROOT))
            generated = page == "docs/reference/cli.md"
            if not generated and (page not in PAGES or anchor not in anchors(page)):
                wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", [page for page in PAGES if links(without_blocks(page))])
def test_links_of_pages(page):
    assert broken(page, without_blocks(page)) == []


@pytest.mark.parametrize("place", OTHERS)
def test_links_of_other_files(place):
    assert broken(place, OTHERS[place]) == []


def test_links_into_the_page_of_commands_are_commands():
    from tokenflex.cli.main import COMMANDS

    names = {command.__name__.rpartition(".")[2] for command in COMMANDS}
    asked = re.findall(r"\(\S*cli\.md#([\w-]+)\)", "\n".join(map(without_blocks, PAGES)))
    assert asked
    assert set(asked) <= names


def test_every_page_is_in_the_menu_once():
    import yaml

    class Loader(yaml.SafeLoader):
        """Tags of Python's objects are left as text."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    menu = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]
    named = re.findall(r"[\w/-]+\.md", str(menu))
    assert len(set(named)) == len(named)
    assert {f"docs/{name}" for name in named} == {*PAGES, "docs/index.md"} - {"README.md"}


def test_what_leads_nowhere_is_found():
    text = (
        "[a](use.md) [b](nowhere.md) [c](use.md#calls) [d](use.md#nonsense) [e](https://example.org) [f](../tokenflex)"
    )
    assert broken("docs/new.md", text) == ["nowhere.md", "use.md#nonsense"]


def test_images_have_a_text():
    for page in PAGES:
        for text, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", without_blocks(page)):
            assert len(text) > 20, (page, target)
            assert Path(ROOT / page).parent.joinpath(target).exists()
