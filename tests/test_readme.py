"""What the README shows runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import tokenflex

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
MODEL = "llava-hf/llava-v1.6-vicuna-7b-hf"


def test_the_first_block_runs_as_it_stands():
    ran = subprocess.run([sys.executable, "-c", BLOCKS[0]], check=True, capture_output=True, text=True)
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("level 0: ")
    assert len(lines) == 7


def test_the_second_block_runs_on_a_saved_model(host, processor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    host.save_pretrained("model")
    processor.save_pretrained("model")
    Image.fromarray(np.zeros((40, 50, 3), dtype=np.uint8)).save("photo.jpg")
    assert MODEL in BLOCKS[1]
    names: dict = {}
    exec(BLOCKS[1].replace(MODEL, "model").replace("max_new_tokens=64", "max_new_tokens=2"), names)
    assert os.listdir("my-router")
    assert tokenflex.load_parts("my-router", host=names["host"]).decide(**names["inputs"])[0].of > 0
    assert len(BLOCKS) == 2


def test_line_three_tells_the_name_sake_apart():
    assert "2504.03154" in README.splitlines()[2]


def test_it_is_short():
    assert len(README.splitlines()) < 150


def test_links_point_at_files():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
