"""What the README shows runs."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_as_it_stands():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (example,) = [block for block in blocks if "tiny_llava_next" in block]
    (conversation,) = [block for block in blocks if "compact_sequences" in block]
    goes_on = "import torch\n" + conversation + "print(out.compact_sequences.shape[1] - ids.shape[1])"
    script = f"{example}\n{goes_on if 'cache' in fields() else ''}"
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("level 0: ")
    assert len(lines) == (8 if goes_on in script else 7)


def fields():
    """Of an output; transformers 5.24 renamed one."""
    from transformers.generation import GenerateDecoderOnlyOutput

    return GenerateDecoderOnlyOutput.__dataclass_fields__


def test_line_three_tells_the_name_sake_apart():
    assert "2504.03154" in README.splitlines()[2]


def test_links_point_at_files():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
