"""What the entry point gives lmms-eval: a name and where the class is; nothing is imported before it is used."""

from typing import Any


def models() -> list[Any]:
    """One ``ModelManifest``: the chat-style model ``tokenflex``."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return [ModelManifest(model_id="tokenflex", chat_class_path="tokenflex_lmms_eval.model.TokenFlex")]
