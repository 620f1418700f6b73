"""``transformers serve`` refuses a saved model, as docs/serving.md says; once it doesn't, that page should say so."""

import pytest

from tests.serving.test_actors import model

manager = pytest.importorskip("transformers.cli.serving.model_manager")
__all__ = ["model"]


def test_it_looks_for_the_class_in_transformers_itself(model):
    with pytest.raises(AttributeError, match="has no attribute FlexModel"):
        manager.ModelManager(device="cpu").load_model_and_processor(model[0])


def test_it_knows_the_kinds_of_its_own_classes_only(model):
    _, flex, processor = model
    with pytest.raises(ValueError, match="Unknown modality for: FlexModel"):
        manager.ModelManager.get_model_modality(flex, processor)
