"""What ``import tokenflex`` offers, without importing more than is used."""

import subprocess
import sys

import pytest

import tokenflex


def test_every_public_name_is_there_after_a_bare_import():
    script = "import tokenflex\nprint([name for name in tokenflex.__all__ if getattr(tokenflex, name) is None])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_bare_import_is_light():
    script = "import sys, tokenflex\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


def test_names_are_sorted_and_stand_once():
    assert sorted(set(tokenflex.__all__)) == tokenflex.__all__
    assert set(tokenflex.__all__) < set(dir(tokenflex))


def test_what_is_no_name_is_no_attribute():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = tokenflex.nonsense
