"""What a host's projector is given, for those who keep less than what it makes of it, and run it later.

A projector that widens tokens (1,024 to 4,096 numbers in LLaVA-NeXT 7B) makes four times as much to keep. The tower's
tokens come from the host's own ``get_image_features``, which gives its hidden states when asked; the projector is the
host's own module, built again from the host's configuration and filled with its weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from tokenflex.contracts import HostAdapter, HostBatch
from tokenflex.errors import ConfigError
from tokenflex.hosts import anyres, stock

PROJECTORS: Mapping[str, type[nn.Module]] = {"llava_next": LlavaNextMultiModalProjector}
"""``model_type`` -> class of ``model.multi_modal_projector``, made from the host's configuration."""


def refusal(adapter: HostAdapter) -> str | None:
    """Why a host's tokens can't be had before its projector, or nothing is gained by it, as a clause; else None."""
    if adapter.model_type not in PROJECTORS:
        return f"the projector of {adapter.model_type} isn't known to be a module of its own that is given tokens alone"
    config = stock.base_of(adapter.host).config
    if not isinstance(config.vision_feature_layer, int):
        return "its projector reads several layers of the tower at once"
    width = config.vision_config.hidden_size
    if width >= adapter.dim:
        return f"the tower's tokens have {width} numbers each and the projected ones {adapter.dim}, which is no more"
    return None


def tower_tokens(
    adapter: HostAdapter, batch: HostBatch, views: Sequence[int]
) -> list[Float[Tensor, "views patches width"]]:
    """What the projector is given, image by image; runs the vision tower.

    Args:
        batch: as `HostAdapter.read` gave it, of a host without a `refusal`.
        views: of every image.
    """
    if not views:
        return []
    model: Any = stock.base_of(adapter.host)
    output = anyres.encoded_images(model, batch, output_hidden_states=True)
    asked = batch.inputs.get("vision_feature_layer")
    layer = model.config.vision_feature_layer if asked is None else asked
    tokens = output.hidden_states[layer][:, 1:]
    return list(tokens.split(list(views)))


def described(adapter: HostAdapter) -> dict[str, Any]:
    """What `rebuilt` makes the projector of: the host's configuration, as data."""
    return {"config": stock.base_of(adapter.host).config.to_dict()}


def weights(adapter: HostAdapter) -> dict[str, Tensor]:
    """The weights of the host's projector, detached, by name."""
    projector: nn.Module = stock.base_of(adapter.host).model.multi_modal_projector
    return {name: value.detach() for name, value in projector.state_dict().items()}


def rebuilt(spec: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The projector by itself, frozen, in the type of its weights.

    Args:
        spec: as `described` gave it.
        state: as `weights` gave it.

    Raises:
        ConfigError: no projector is known for this type of host, or the weights are another one's.
    """
    settings = dict(spec["config"])
    model_type = settings.pop("model_type", None)
    if model_type not in PROJECTORS:
        raise ConfigError(
            f"model_type {model_type!r} has no projector that is known here; use one of {', '.join(PROJECTORS)}."
        )
    with torch.device("meta"):
        made = PROJECTORS[model_type](AutoConfig.for_model(model_type, **settings))  # pyright: ignore[reportCallIssue]
    expected = made.state_dict()
    if expected.keys() != state.keys() or any(expected[name].shape != value.shape for name, value in state.items()):
        raise ConfigError(f"the weights {', '.join(sorted(state))} aren't those of {type(made).__name__}.")
    made.load_state_dict(dict(state), assign=True)
    return made.requires_grad_(False).eval()
