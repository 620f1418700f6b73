"""Files of rows: JSON, JSON Lines, Parquet and saved folders of Hugging Face ``datasets``, read as data only.

Nothing in them is run: no pickles, no loading scripts, no paths out of a saved folder; images stay the bytes that are
stored. What is damaged is told with the file, the line or row, and what was expected.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenflex.errors import ConfigError, DataError
from tokenflex.reading import json_file, json_text, own_file, text

LARGEST = 4 * 2**30
"""Bytes of a JSON or JSON Lines file, which is read as a whole; larger data sets fit Parquet."""
IMAGES = ("image", "images")
STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
PLAIN = (None, "python", "numpy", "torch", "arrow", "pandas")
"""Formats that a saved folder may ask for; others load further libraries or hold code."""


def read_rows(path: str | Path) -> Any:
    """Rows from a ``.json`` (a list) or ``.jsonl`` file, a ``.parquet`` file, or a saved ``datasets`` folder.

    The last two give a ``datasets.Dataset`` whose images are as they are stored: mappings with ``bytes`` or ``path``.

    Raises:
        ConfigError: the library ``datasets`` is needed and isn't installed.
        DataError: the path doesn't exist, isn't in one of these formats, or can't be read.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(
            f"data {str(path)!r} doesn't exist; give a .json, .jsonl or .parquet file or a datasets folder."
        )
    if source.is_dir() or (source.suffix == ".parquet" and source.is_file()):
        return _read_datasets(source)
    if not source.is_file():
        raise DataError(f"data {str(path)!r} is neither a file nor a folder; give one of those.")
    if source.suffix not in (".json", ".jsonl"):
        raise DataError(
            f"data {str(path)!r}: unknown format {source.suffix!r}; use .json, .jsonl, .parquet or a folder."
        )
    content = text(source, DataError, LARGEST).removeprefix("\ufeff")
    if source.suffix == ".jsonl":
        lines = content.split("\n")  # strings may hold the other separators that str.splitlines knows
        return [json_text(line, f"{source}, line {n}", DataError) for n, line in enumerate(lines, 1) if line.strip()]
    rows = json_text(content, str(source), DataError)
    if not isinstance(rows, list):
        raise DataError(f"{source} holds a {type(rows).__name__}; expected a list of rows.")
    return rows


def require_one_split(names: Iterable[Any]) -> None:
    """Refuse data with splits, such as a ``datasets.DatasetDict`` or ``IterableDatasetDict``.

    Args:
        names: of the splits.

    Raises:
        DataError: names the splits.
    """
    listed = ", ".join(map(str, names))
    raise DataError(f"the data has splits, {listed}; give the folder of one of them, or data[name] in Python.")


def _read_datasets(source: Path) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ConfigError(f"{source} needs the library datasets: pip install 'tokenflex[eval]'.") from error
    if source.is_dir():
        _require_inside(source)
    try:
        if source.is_dir():
            rows: Any = datasets.load_from_disk(str(source))
            rows.data.validate(full=True)  # its files are mapped into memory as they are
        else:
            rows = datasets.Dataset.from_parquet(str(source))
        for name, feature in list(rows.features.items()):
            if getattr(feature, "decode", False):
                rows = rows.cast_column(name, replace(feature, decode=False))
    except FileNotFoundError as error:
        raise DataError(f"{source} holds no saved data set ({error}). Write it with save_to_disk.") from error
    except Exception as error:  # of datasets, pyarrow and the file system
        reason = f"{error} ({error.__cause__})" if error.__cause__ is not None else str(error)
        raise DataError(f"{source} can't be read as a data set: {reason}. Get it again, or make it again.") from error
    _require_images(rows, source)
    return rows


def _require_inside(source: Path) -> None:
    """Refuse a saved folder whose description names anything but files directly in it, or a format with code.

    Raises:
        DataError: names it.
    """
    if (source / SPLITS).is_file():
        contents = json_file(own_file(source, SPLITS, DataError), DataError)
        require_one_split(
            contents["splits"] if isinstance(contents, dict) and isinstance(contents.get("splits"), list) else ()
        )
    if not (source / STATE).is_file():
        raise DataError(f"{source} holds no saved data set (it has no {STATE}). Write it with save_to_disk.")
    state, info = (json_file(own_file(source, name, DataError), DataError) for name in (STATE, INFO))
    files = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(info, dict) or not isinstance(files, list) or not all(isinstance(one, dict) for one in files):
        raise DataError(f"{source}: {STATE} or {INFO} doesn't describe a data set. Write it again with save_to_disk.")
    for one in files:
        path = own_file(source, one.get("filename", ""), DataError)
        if not path.is_file():
            raise DataError(f"{path}, which {STATE} names, isn't a file. Write the data set again with save_to_disk.")
    kind = state.get("_format_type")
    if kind not in PLAIN:
        raise DataError(f"{source}: {STATE} asks for the format {kind!r:.100}; known are {PLAIN}. Save it without one.")


def _require_images(rows: Any, source: Path) -> None:
    """Refuse data whose images are all gone; rows of their own may have none.

    Raises:
        DataError: names the columns.
    """
    found = [name for name in IMAGES if name in rows.column_names]
    if found and len(rows) and all(rows.data.column(name).null_count == len(rows.data) for name in found):
        raise DataError(
            f"{source}: {' and '.join(found)} hold nulls in all {len(rows)} rows, so no row has an image. Drop the "
            "column if that is meant; else make the file again."
        )
