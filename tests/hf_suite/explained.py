"""Tests that the plain host passes and a `FlexModel` doesn't, and why; docs/clients.md says the same at length."""

from collections.abc import Mapping

_BOTH_IN_ONE = "the top-most configuration and its only sub-configuration are the host's: two objects with one value"
_EMBEDDED = "images are shortened in input_ids, before they are embedded; with inputs_embeds they are refused"
_WHOLE = "a FlexModel is loaded as it was saved or not at all; weights that a file lacks are refused"
_TOWER = "image_outputs holds the tokens that were chosen, not the vision tower's attentions and hidden states"

EXPLAINED: Mapping[str, str] = {
    "test_can_init_all_missing_weights": _WHOLE,
    "test_can_set_attention_dynamically_composite_model": _BOTH_IN_ONE,
    "test_generate_from_inputs_embeds": _EMBEDDED,
    "test_generate_from_inputs_embeds_with_static_cache": _EMBEDDED,
    "test_generate_continue_from_past_key_values": (
        "the random model generated an image's placeholder, and one behind a cache without its image is refused"
    ),
    "test_inputs_embeds": _EMBEDDED,
    "test_model_weights_reload_no_missing_tied_weights": _WHOLE,
    "test_multimodal_outputs_are_returned": _TOWER,
    "test_tp_plan_matches_params": "it looks for plans one level deep; the host's stand two levels deep, and are used",
}
"""Name of a test, without what its parameters add to it -> reason."""


def reason_for(test: str) -> str | None:
    """Why a test can't pass; None where there is no reason.

    Args:
        test: its name, perhaps with a number and words for its parameters.
    """
    named = [name for name in EXPLAINED if test == name or test.startswith(f"{name}_0") or test.startswith(f"{name}_1")]
    return EXPLAINED[max(named, key=len)] if named else None
