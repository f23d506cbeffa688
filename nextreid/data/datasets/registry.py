"""Data sets by name."""

import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..sample import ReIDDataset

_logger = logging.getLogger(__name__)
_readers: dict[str, Callable[..., ReIDDataset]] = {}


def register_dataset(name: str) -> Callable[[Callable[..., ReIDDataset]], Callable[..., ReIDDataset]]:
    """Return a decorator that makes a reader known to `load_dataset` as `name`.

    A reader of files takes ``(root, *, captions=None, modalities=...)``; one that makes its data takes whatever
    keywords it needs.

    Args:
        name: Name of the data set, in lower case.

    Raises:
        ValueError: If another reader has this name.
    """

    def register(reader: Callable[..., ReIDDataset]) -> Callable[..., ReIDDataset]:
        if name in _readers:
            raise ValueError(f"a data set {name!r} is registered already")
        _readers[name] = reader
        return reader

    return register


def list_datasets() -> list[str]:
    """Return the names of the data sets that `load_dataset` knows, sorted."""
    return sorted(_readers)


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    captions: str | Path | None = None,
    modalities: Sequence[str] | None = None,
    **options: Any,
) -> ReIDDataset:
    """Load a data set.

    What the reader noticed (pictures missing, files that it does not know, captions without a picture) is in the
    set's `notes` and is logged once.

    Args:
        name: One of `list_datasets`.
        root: Folder of the data set, or the folder that holds it; for "manifest" the file.
        captions: Folder with the published caption files ``{train,test}_{RGB,NI,TI}.json``, or one that holds it.
        modalities: Modalities to read, in this order; None reads all.
        **options: Further keywords of this set, such as ``complete`` of "wmveid863", ``protocol`` of "manifest",
            ``pattern`` of "pattern" or ``seed`` of "synthetic-persons".

    Returns:
        The data set, each split sorted by key.

    Raises:
        ValueError: If the name is unknown, an argument is missing or not one of this set, or files do not fit.
        FileNotFoundError: If a folder or file is missing; names what was looked for and the expected layout.
    """
    if name not in _readers:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(list_datasets())}")
    named = {"root": root, "captions": captions, "modalities": modalities}
    given = {key: value for key, value in named.items() if value is not None} | options
    signature = inspect.signature(_readers[name])
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ValueError(f"data set {name!r}: {error}; it takes {', '.join(signature.parameters)}") from error
    dataset = _readers[name](**given)
    # What a made set says of itself is no surprise; what a reader found in files may be one.
    level = logging.WARNING if root is not None else logging.INFO
    for note in dataset.notes:
        _logger.log(level, "%s: %s", name, note)
    return dataset
