"""``docs/write_a_scaler.md`` step by step, as a newcomer would: files written, commands run, outputs as shown."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE, TEMPLATE = ROOT / "docs" / "write_a_scaler.md", ROOT / "plugins" / "template"
FENCE = re.compile(r"^```(\w+)(?: (\w+)(?:=\"([^\"]+)\")?)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = FENCE.findall(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """An empty folder, and an environment in which what is installed there is found."""
    folder, site = tmp_path_factory.mktemp("template"), tmp_path_factory.mktemp("site")
    (folder / "README.md").write_text("to be written\n")
    bin_folder = Path(sys.executable).parent
    env = {
        **os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "80",
        "PYTHONDONTWRITEBYTECODE": "1", "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    return folder, site, env


def run(command, workshop):
    folder, site, env = workshop
    # Without an index: what is built here must not need the network, nor end up in the tests' own environment.
    offline = f"pip install --quiet --no-index --no-deps --no-build-isolation --target {site}"
    command = command.replace("pip install", offline)
    done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True)
    return done.stdout, done.stderr


def steady(text):
    """Without times, and without sizes of differences, which random numbers of another version change."""
    text = re.sub(r"differ by up to [\d.]+", "differ by up to ...", text)
    return re.sub(r"in [\d.]+s", "in ...s", text).strip()


def test_every_step_does_what_the_page_says(workshop):
    folder, _, env = workshop
    printed, ran = None, 0
    for language, role, name, text in BLOCKS:
        if role in ("title", "draft"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif language == "console":
            for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                out, err = run(command, workshop)
                assert steady(out) == steady(expected), f"{command}\n{out}\n{err}"
                ran += 1
        elif role == "run":
            done = subprocess.run([sys.executable, "-c", text], cwd=folder, env=env, capture_output=True, text=True)
            printed = done.stdout
            assert done.returncode == 0, done.stderr
        elif language == "output":
            assert printed == text
    assert ran == 5


def test_the_template_is_what_the_page_builds():
    built = {name: text for _, role, name, text in BLOCKS if role == "title"}
    assert len(built) == 4
    for name, text in built.items():
        assert (TEMPLATE / name).read_text(encoding="utf-8") == text, name
    files = {str(path.relative_to(TEMPLATE)) for path in TEMPLATE.rglob("*") if path.suffix in (".py", ".toml")}
    assert files == set(built)
