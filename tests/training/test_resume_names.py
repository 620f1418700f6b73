"""A checkpoint's files name others of the same checkpoint only."""

import pytest

from tokenflex.training.resume import _weights_fault


@pytest.mark.parametrize("tag", ["../elsewhere", "", ".", "..", "missing"])
def test_a_tag_names_a_folder_of_the_checkpoint(tmp_path, tag):
    folder = tmp_path / "checkpoint-1"
    (folder / "global_step1").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "latest").write_text(tag)
    assert "that its 'latest' names" in _weights_fault(folder)
    (folder / "latest").write_text("global_step1\n")
    assert _weights_fault(folder) is None


def test_an_absolute_tag_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "latest").write_text(str(tmp_path / "elsewhere"))
    assert "that its 'latest' names" in _weights_fault(tmp_path)
