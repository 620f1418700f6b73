"""transformers' own tests on FlexModel, beside the plain host: ``python -m tests.hf_suite [host ...]``."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import transformers

from tests.hf_suite import sources
from tests.hf_suite.cases import VARIANTS
from tests.hf_suite.table import Compared, compare, written
from tokenflex.testing.zoo.hosts import ZOO

HOSTS = (
    "llava_next", "qwen2_5_vl", "qwen3_vl", "paligemma", "llava_onevision", "internvl", "mistral3", "idefics3",
    "gemma3",
)  # fmt: skip
"""Hosts that are run where none is named."""


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The hosts to run.

    Args:
        names: as asked for; none: `HOSTS`.

    Raises:
        SourcesError: there is no tiny host of such a name.
    """
    unknown = sorted(set(names) - set(ZOO))
    if unknown:
        raise sources.SourcesError(f"no tiny host is called {', '.join(unknown)}; there are {', '.join(sorted(ZOO))}.")
    return tuple(dict.fromkeys(names)) or HOSTS


def folders(given: Path | None, work: Path) -> list[Path]:
    """Folders with transformers' tests: the one that was given, or the source distribution and the archive.

    Args:
        given: a checkout of transformers, or its folder ``tests``.
        work: where downloads go.

    Raises:
        SourcesError: there are no tests.
    """
    version = transformers.__version__
    if given is None:
        found = [sources.distribution(version, work), sources.archive(version, work)]
        return [folder for folder in found if folder is not None]
    own = given / "tests" if (given / "tests").is_dir() else given
    whole = (own / sources.COMMON).is_file()
    return [own] if whole else [own, sources.distribution(version, work)]


def run(name: str, variant: str, work: Path, only: str) -> dict[str, dict[str, str]]:
    """Outcome and reason per test of one model, run in a process of its own.

    Raises:
        SourcesError: the process ended without outcomes.
    """
    out = work / f"{name}_{variant}.json"
    command = [sys.executable, "-m", "tests.hf_suite.one", str(work), name, variant, str(out), "--only", only]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not out.is_file():
        raise sources.SourcesError(f"{name}, {variant}: {(done.stdout + done.stderr)[-2000:]}")
    return json.loads(out.read_text())


def main() -> int:
    """Run, print the page, and tell by the status whether some test was lost without a reason."""
    parser = argparse.ArgumentParser(prog="python -m tests.hf_suite", description=__doc__)
    parser.add_argument("hosts", nargs="*", help=f"model types; without any {', '.join(HOSTS)}")
    parser.add_argument("--tests", type=Path, help="a checkout of transformers, or its folder tests; else downloaded")
    parser.add_argument("--only", default="", help="tests to run, as pytest -k takes it")
    parser.add_argument("--out", type=Path, help="a file for the page")
    given = parser.parse_args()
    found: list[Compared] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        try:
            names = chosen(given.hosts)
            _, lacking = sources.assemble(folders(given.tests, work), work)
            header = _header(lacking)
            for name in names:
                host, flex = (run(name, variant, work, given.only) for variant in VARIANTS)
                found.append(compare(name, host, flex))
                sys.stderr.write(f"{name}: {found[-1].host} / {found[-1].flex}\n")
        except sources.SourcesError as error:
            sys.stderr.write(f"{error}\n")
            return 2
    page = written(found, header)
    sys.stdout.write(page)
    if given.out is not None:
        given.out.write_text(page)
    return int(any(one.unexplained for one in found))


def _header(lacking: Sequence[str]) -> list[str]:
    told = f"transformers {transformers.__version__}: its tests of models" + (
        " and of generation." if not any(name.startswith("generation") for name in lacking) else
        ". Its tests of generation were not run: the source distribution has none, and the release's archive couldn't "
        "be fetched. Give a checkout: --tests PATH."
    )  # fmt: skip
    return [told]


if __name__ == "__main__":
    sys.exit(main())
