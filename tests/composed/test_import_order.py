"""Whatever is imported first, the Auto classes know both models."""

import subprocess
import sys

import pytest

FIRST = (
    "from tokenflex.model import FlexModel",
    "from tokenflex.composed import compose",
    "import tokenflex; tokenflex.wrap, tokenflex.compose",
    "import tokenflex; from transformers import AutoModelForImageTextToText",
    "from transformers import AutoModelForImageTextToText; import tokenflex",
    "import tokenflex; from transformers import AutoProcessor",
    "import tokenflex; from transformers import pipeline",
)


@pytest.mark.parametrize("first", FIRST)
def test_auto_classes_know_both_models(first):
    script = (
        f"{first}\n"
        "from transformers import AutoConfig, AutoModelForImageTextToText\n"
        "from tokenflex.composed import ComposedConfig, ComposedForConditionalGeneration\n"
        "from tokenflex.model import FlexConfig, FlexModel\n"
        "known = AutoModelForImageTextToText._model_mapping\n"
        "assert known[ComposedConfig] is ComposedForConditionalGeneration and known[FlexConfig] is FlexModel\n"
        "assert type(AutoConfig.for_model('tokenflex_composed')) is ComposedConfig\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_configuration_alone_is_known():
    script = "import tokenflex; from transformers import AutoConfig; AutoConfig.for_model('tokenflex')"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
