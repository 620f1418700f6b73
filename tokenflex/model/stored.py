"""Weights of the parts inside a saved model, read without its host."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from tokenflex import loadable, reading
from tokenflex.checkpoint import DIGEST
from tokenflex.errors import ConfigError
from tokenflex.files import bare_name
from tokenflex.loadable import INDEX, WEIGHTS
from tokenflex.ops.digest import of_tensors

PREFIX = "compressor."


def digest(state: Mapping[str, Tensor]) -> str | None:
    """Digest of the parts' tensors in a state, as ``config.json`` tells it; None where they are spread or not here."""
    parts = {name: value for name, value in state.items() if name.startswith(PREFIX)}
    plain = all(type(value) in (Tensor, nn.Parameter) and not value.is_meta for value in parts.values())
    return f"blake2b:{of_tensors(parts)}" if plain else None


def require_same(expected: object, state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights of parts that aren't those that were saved.

    Args:
        expected: the digest that ``config.json`` tells; None passes, as in models of versions before there was one.
        state: the weights, as `weights` gives them.
        source: the folder that they come from, for the message.

    Raises:
        ConfigError: they are others.
    """
    found = None if expected is None else digest({f"{PREFIX}{name}": value for name, value in state.items()})
    if expected != found:
        raise ConfigError(
            f"{source}: config.json was saved with other weights of the parts ({DIGEST}: {expected!r:.200}) than the "
            f"folder holds ({found}). Save it again, or download it again; if you changed them on purpose, remove the "
            f"key {DIGEST!r} from its parts."
        )


def require_saved(expected: object, source: str) -> None:
    """Refuse weights in a folder as `require_same` does; one without safetensors under the usual names passes.

    Raises:
        ConfigError: they are others, or a file is damaged.
    """
    if expected is not None and loadable.weight_files(Path(source)):
        require_same(expected, weights(source), source)


def weights(source: str) -> dict[str, Tensor]:
    """The weights of the parts, by names that begin with the kind of part.

    Args:
        source: a folder that `FlexModel.save_pretrained` wrote, or the id of such a repository on the model hub.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    state: dict[str, Tensor] = {}
    files = loadable.weight_files(Path(source)) if Path(source).is_dir() else _fetched(source)
    for path in files:
        names = [name for name in reading.tensor_names(path)[1] if name.startswith(PREFIX)]
        if names:
            with reading.safetensors_file(path) as held:
                state |= {name.removeprefix(PREFIX): held.get_tensor(name) for name in names}
    if not files:  # parts may have no weights at all
        raise ConfigError(f"host {source!r} has neither {WEIGHTS} nor {INDEX}. Save it with save_pretrained().")
    return state


def _fetched(source: str) -> list[Path]:
    whole, index = _file(source, WEIGHTS), _file(source, INDEX)
    if whole is not None or index is None:
        return [] if whole is None else [whole]
    contents = reading.json_file(index)
    shards = contents.get("weight_map") if isinstance(contents, Mapping) else None
    try:
        names = sorted({bare_name(file) for name, file in dict(shards or {}).items() if name.startswith(PREFIX)})
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{index} isn't an index of shards: {error}. Save the model again.") from error
    found = {name: _file(source, name) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise ConfigError(f"host {source!r} lacks {', '.join(missing)}, which {INDEX} names. Save the model again.")
    return [path for path in found.values() if path is not None]


def _file(source: str, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(source, name))
    except EntryNotFoundError:
        return None
    except Exception as error:
        raise ConfigError(f"{name} of {source!r} can't be fetched from the hub: {error}") from error
