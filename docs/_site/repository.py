"""A hook of mkdocs: README.md becomes the home page, and files outside of docs/ that pages link to become pages.

So the same Markdown serves readers of the repository and of the site, and the site needs no address of a repository.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
SHOWN = "repository"
"""Folder of the site with what lies outside of docs/."""
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
FENCE = re.compile(r"^( *)(```+|~~~+)")
OPTIONS = re.compile(r"^( *```+)(\w+) (?:run|\w+=(\"[^\"]*\"))$", re.MULTILINE)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml", ".cff": "yaml"}


def on_files(files: Files, config: Any) -> Files:
    """Add the home page and the pages of linked files, and of those that these link to."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    todo = [(_home_of(file.src_uri), file.content_string) for file in files.documentation_pages()]
    seen: set[str] = set()
    while todo:
        place, text = todo.pop()
        for target in sorted(_outside(place, text) - seen):
            seen.add(target)
            page = _page_of(target)
            files.append(File.generated(config, _shown(target), content=page))
            todo.append((target, page))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are on the site; and fences with the titles that the site knows."""
    place = _home_of(page.file.src_uri)
    text = OPTIONS.sub(lambda found: f"{found[1]}{found[2]}" + (f" title={found[3]}" if found[3] else ""), markdown)
    return _rewritten(text, place, page.file.src_uri)


def _home_of(uri: str) -> str:
    """Where the text of a page of the site lies in the repository."""
    if uri == "index.md":
        return "README.md"
    if uri.startswith(f"{SHOWN}/"):
        inner = uri.removeprefix(f"{SHOWN}/")
        return inner if (ROOT / inner).is_file() else inner.removesuffix(".md")
    return f"docs/{uri}"


def _shown(target: str) -> str:
    """The page of the site for a file or folder outside of docs/."""
    return f"{SHOWN}/{target}" if target.endswith(".md") else f"{SHOWN}/{target}.md"


def _page_of(target: str) -> str:
    """What a page shows: Markdown as it is, other files as code, folders as lists."""
    path = ROOT / target
    head = "---\nsearch:\n  exclude: true\n---\n\n"
    if path.is_dir():
        names = sorted(one.name for one in path.iterdir() if not one.name.startswith((".", "__")))
        linked = {name: Path(name).suffix in (".md", *LANGUAGES) for name in names}
        folder = posixpath.basename(target)
        lines = [f"- [{name}]({folder}/{name})" if linked[name] else f"- {name}" for name in names]
        return f"{head}# {target}\n\n" + "\n".join(lines) + "\n"
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return head + text
    return f"{head}# {target}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}````\n"


def _prose(text: str) -> Iterator[tuple[str, bool]]:
    """Lines with whether they are prose, not code."""
    fence = ""
    for line in text.split("\n"):
        found = FENCE.match(line)
        if found and (not fence or found[2].startswith(fence)):
            fence = "" if fence else found[2]
            yield line, False
        else:
            yield line, not fence


def _resolved(target: str, place: str) -> str | None:
    """The path in the repository that a link of a file leads to; None for links to elsewhere."""
    path = target.partition("#")[0]
    if not path or re.match(r"[a-z][a-z+.-]*:|//|/", path):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(place), path))


def _outside(place: str, text: str) -> set[str]:
    found = set()
    for line, prose in _prose(text):
        for target in LINK.findall(line) if prose else ():
            path = _resolved(target, place)
            if path and not path.startswith(("docs/", "..")) and path != "README.md" and (ROOT / path).exists():
                found.add(path)
    return found


def _rewritten(text: str, place: str, uri: str) -> str:
    def moved(found: re.Match[str]) -> str:
        path = _resolved(found[1], place)
        if path is None or path.startswith("..") or not (ROOT / path).exists():
            return found[1]
        inside = path.removeprefix("docs/") if path.startswith("docs/") else _shown(path)
        there = "index.md" if path == "README.md" else inside
        hash_ = found[1].partition("#")[2]
        return posixpath.relpath(there, posixpath.dirname(uri) or ".") + (f"#{hash_}" if hash_ else "")

    return "\n".join(LINK.sub(moved, line) if prose else line for line, prose in _prose(text))
