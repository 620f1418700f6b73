"""What differs between stock architectures, as data for their adapters: one row for each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenflex.contracts import Grid
from tokenflex.hosts.modality import Modality
from tokenflex.hosts.resizing import Resizing

ANOTHER_RULE = "its processor has a rule of its own for sizes, which isn't known here"
TILE_TEXT = "its processor writes text around every tile of an image, and a smaller image has other text"
NOT_PLAIN = "its vision tower isn't a plain stack of layers over square views"
BLOCKS = "images attend within themselves, and the host counts those blocks across packed rows"
PREFIX = "prompt tokens attend to text tokens and images behind them"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One ``model_type``: all that is known of it, besides the version of transformers it needs (see `catalog`).

    Refusals are clauses that say why something can't be done; None where it can.

    Attributes:
        family: the table it stands in.
        modalities: what it sees, in the order in which a batch counts it.
        canonical: the grid parts are sized for, from the config.
        vision_tower: paths of the tower's modules and parameters.
        projector: paths of the projector's modules and parameters.
        flat: whether ``pooler_output`` must be one tensor; otherwise a list with one entry per row of the batch.
        rotary: whether positions have axes (M-RoPE), so that shortened images need positions of their own.
        types: input that tells text tokens, images and videos apart as 0, 1, 2; made from the ids where it is missing.
        mark_field: field of the encoder's output that goes along as it is.
        refusal: from the config, why a checkpoint isn't served.
        resizing: how its images are made smaller before they are encoded, or why they can't be.
        attention_refusal: why its vision tower's attention isn't computed again; that of the others is compared with
            the tower's own by a test.
        packing_refusal: why its rows can't be packed into one, besides what its language model's layers say
            (measured by the law ``packed``).
        grouping_refusal: why its rows can't be read in groups, besides what its language model says (measured by the
            law ``ragged``).
        looks_ahead: why text tokens in front of an image depend on it, besides what its language model says (measured
            by the tests of escalation); None where they don't.
        append_refusal: why turns of a conversation can't be read one by one, each with its own images.
    """

    family: str
    modalities: tuple[Modality, ...]
    canonical: Callable[[Any], Grid]
    vision_tower: tuple[str, ...]
    projector: tuple[str, ...]
    flat: bool = False
    rotary: bool = False
    types: str | None = None
    mark_field: str | None = None
    refusal: Callable[[Any], str | None] = lambda config: None
    resizing: Resizing | str = ANOTHER_RULE
    attention_refusal: str | None = NOT_PLAIN
    packing_refusal: str | None = None
    grouping_refusal: str | None = None
    looks_ahead: str | None = None
    append_refusal: str | None = None
