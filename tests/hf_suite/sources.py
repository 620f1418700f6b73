"""Where transformers' tests come from: its source distribution on PyPI, and a checkout or archive of the release."""

import io
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

COMMON = "test_modeling_common.py"
ARCHIVE = "https://codeload.github.com/huggingface/transformers/tar.gz/refs/tags/v{version}"
STAND_INS = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
}
"""Modules that the common tests import and the source distribution lacks, as they are written where nobody has them."""
PACKAGE = "transformers_tests"
"""Name of the package that the tests are put into."""


class SourcesError(Exception):
    """Tests can't be had, or aren't transformers' tests."""


def distribution(version: str, folder: Path) -> Path:
    """The folder ``tests`` of transformers' source distribution, fetched by pip.

    Args:
        version: of transformers, as installed.
        folder: where to put it.

    Raises:
        SourcesError: pip couldn't fetch it, or it has no tests of models.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    asked = subprocess.run(
        [*command, "--no-build-isolation", f"transformers=={version}", "--dest", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = sorted(folder.glob("transformers-*.tar.gz"))
    if not found:
        raise SourcesError(f"pip couldn't fetch the source distribution of transformers {version}: {asked.stderr}")
    return unpacked(found[0].read_bytes(), folder / "distribution")


def archive(version: str, folder: Path) -> Path | None:
    """The folder ``tests`` of the release's archive on GitHub, which also has generation's tests; None offline."""
    try:
        with urllib.request.urlopen(ARCHIVE.format(version=version), timeout=60) as answer:
            data = answer.read()
    except OSError:
        return None
    return unpacked(data, folder / "archive")


def unpacked(data: bytes, folder: Path) -> Path:
    """The folder ``tests`` in a packed distribution or checkout; of the rest nothing is unpacked.

    Raises:
        SourcesError: there are no tests of models in it.
    """
    with tarfile.open(fileobj=io.BytesIO(data)) as packed:
        for member in packed.getmembers():
            content = packed.extractfile(member) if member.isreg() and _in_tests(member.name) else None
            if content is not None:
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    found = sorted(folder.glob(f"*/tests/{COMMON}"))
    if not found:
        raise SourcesError(f"it has no tests/{COMMON}: releases of transformers before 5 pack none.")
    return found[0].parent


def _in_tests(name: str) -> bool:
    parts = Path(name).parts
    if {"..", "/"} & set(parts):
        return False
    return name.endswith(".py") and parts[1:2] == ("tests",) and (len(parts) == 3 or parts[2] == "generation")


def assemble(folders: list[Path], target: Path) -> tuple[Path, list[str]]:
    """One importable package of tests.

    Args:
        folders: holding tests; the first that has a module gives it.
        target: a folder of the run's own, which gets the package.

    Returns:
        The package's folder, and the modules that nobody has and that stand empty in it.

    Raises:
        SourcesError: none of the folders has the common tests.
    """
    package = target / PACKAGE
    _copy(folders, COMMON, package)
    lacking = [name for name in STAND_INS if not any((folder / name).is_file() for folder in folders)]
    for name, text in STAND_INS.items():
        place = package / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name in lacking or name.startswith("exporters"):
            place.write_text(text)
        else:
            _copy(folders, name, package)
    for folder in (package, *(package / name for name in ("generation", "exporters"))):
        (folder / "__init__.py").write_text("")
    return package, lacking


def _copy(folders: list[Path], name: str, package: Path) -> None:
    source = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if source is None:
        raise SourcesError(f"none of {', '.join(map(str, folders))} has {name}; give a folder 'tests' of transformers.")
    (package / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, package / name)
