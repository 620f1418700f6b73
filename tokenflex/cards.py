"""What a saved folder says of itself, to people (``README.md``) and to transformers without this package.

A folder of a whole model gets ``modeling_tokenflex.py``, one line of import, and ``auto_map`` in ``config.json``: where
tokenflex isn't installed, transformers names the missing package instead of advising a newer transformers. Nothing
else is in that file, and where the package is imported, transformers doesn't read it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenflex import catalog
from tokenflex.files import write_whole
from tokenflex.markup import code

CARD_NAME, CODE_NAME = "README.md", "modeling_tokenflex.py"
MARK = "<!-- written by tokenflex; a card without this line is left as it is -->"
TEMPLATE = "This model card has been automatically generated"
"""Words of the card that transformers writes where a repository has none."""
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
TAGS = ("tokenflex", "visual-token-compression")


def origin(config: Any) -> dict[str, str]:
    """``name`` and ``revision`` of the repository on the hub that a host was loaded from; empty where it wasn't.

    Args:
        config: the host's. A folder on this machine is none of a reader's business and isn't told.
    """
    name, revision = getattr(config, "_name_or_path", None), getattr(config, "_commit_hash", None)
    if not isinstance(name, str) or not REPOSITORY.fullmatch(name) or Path(name).exists():
        return {}
    return {"name": name} | ({"revision": revision} if isinstance(revision, str) else {})


def write_code(folder: Path, package: str, config: str, model: str) -> None:
    """Write what lets transformers find the model's class, once ``config.json`` is there.

    Args:
        package: dotted, that has both classes.
        config, model: names of classes.
    """
    page = folder / "config.json"
    if not page.is_file():
        return
    write_whole(
        folder / CODE_NAME,
        '"""The classes of this folder\'s model are in the package tokenflex: pip install tokenflex."""\n\n'
        f"from {package} import {config}, {model}\n\n__all__ = [{config!r}, {model!r}]\n".replace("'", '"'),
    )
    module = CODE_NAME.removesuffix(".py")
    found = json.loads(page.read_text(encoding="utf-8"))
    found["auto_map"] = {"AutoConfig": f"{module}.{config}"} | dict.fromkeys(catalog.AUTO_MODELS, f"{module}.{model}")
    write_whole(page, json.dumps(found, indent=2, sort_keys=True) + "\n")


def write_card(folder: Path, text: str) -> None:
    """Write the card, unless somebody wrote one themselves."""
    page = folder / CARD_NAME
    if page.exists() and not is_ours(page.read_text(encoding="utf-8", errors="replace")):
        return
    write_whole(page, text)


def is_ours(card: str) -> bool:
    """Whether a card was made by this package, or is transformers' empty one."""
    return MARK in card or TEMPLATE in card


def of_parts(spec: Mapping[str, Any], tokens: Sequence[int]) -> str:
    """The card of a folder that `save_parts` wrote.

    Args:
        spec: the description that is saved.
        tokens: visual tokens of one view of the host's own grid, level by level.
    """
    how = _block(
        "import tokenflex\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        f"name = {_base(spec) or 'the base model'!r}\n"
        "host = AutoModelForImageTextToText.from_pretrained(name, dtype='auto')\n"
        "processor = AutoProcessor.from_pretrained(name)\n"
        "flex = tokenflex.load_parts('this folder or repository', host=host, processor=processor)"
    )
    summary = (
        "Parts that choose, for each image and question, how many visual tokens a large multimodal model sees. The "
        "model itself isn't in this folder."
    )
    return _page("TokenFlex parts", summary, how, spec, tokens)


def of_model(spec: Mapping[str, Any], tokens: Sequence[int]) -> str:
    """The card of a folder that `save_pretrained` wrote; see `of_parts`."""
    how = _block(
        "import tokenflex  # pip install tokenflex\nfrom transformers import AutoModelForImageTextToText\n\n"
        "flex = AutoModelForImageTextToText.from_pretrained('this folder or repository', dtype='auto')"
    )
    summary = (
        "A large multimodal model together with the parts that choose, for each image and question, how many visual "
        "tokens it sees."
    )
    return _page("TokenFlex model", summary, how, spec, tokens)


def _page(title: str, summary: str, how: str, spec: Mapping[str, Any], tokens: Sequence[int]) -> str:
    host = spec["host"]
    base, revision = _base(spec), host.get("revision")
    head = ["---", "library_name: transformers", "pipeline_tag: image-text-to-text"]
    head += [f"base_model: {base}"] if base else []
    head += ["tags:", *(f"- {tag}" for tag in TAGS), "---"]
    rows = [
        f"| {kind} | {code(part['name'])} | {code(json.dumps(part['config'], sort_keys=True))} "
        f"| {code(part['provider'])} {code(part['version'])} |"
        for kind, part in spec["parts"].items()
    ]
    grid = " x ".join(map(str, host["grid"]))
    counted = ", ".join(map(str, tokens))
    return "\n".join([
        *head, MARK, "", f"# {title}", "", summary, "",
        f"- Base model: {code(base) if base else 'not known by a name on the hub'} (type {code(host['model_type'])})"
        + (f", revision {code(revision)}" if revision else ""),
        f"- Levels: {len(tokens)}; visual tokens of one view of {grid}: {counted}", "",
        "| part | name | settings | comes from |", "|---|---|---|---|", *rows, "",
        "## How to load", "", how, "",
        "`flex.generate(**inputs)` lets the router choose; `level=0` forces the fewest tokens, `level='finest'` all.",
        "", "## Licence", "",
        "The base model's licence holds for its weights. This card names none for the parts: their publisher adds "
        "`license:` to the lines at the top.", "",
    ])  # fmt: skip


def _base(spec: Mapping[str, Any]) -> str | None:
    name = spec["host"].get("name")
    return name if isinstance(name, str) and REPOSITORY.fullmatch(name) else None


def _block(text: str) -> str:
    return f"```python\n{text}\n```"
