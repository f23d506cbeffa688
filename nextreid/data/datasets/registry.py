"""Datasets by name."""

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from nextreid._names import unknown

from ..card import missing_counts
from ..sample import ReIDDataset

_logger = logging.getLogger(__name__)
_readers: dict[str, Callable[..., ReIDDataset]] = {}


def register_dataset(name: str) -> Callable[[Callable[..., ReIDDataset]], Callable[..., ReIDDataset]]:
    """Return a decorator that makes a reader known to `load_dataset` as `name`.

    A reader of files takes ``(root, *, captions=None, modalities=...)``; one that makes its data takes whatever
    keywords it needs.

    Args:
        name: Name of the dataset, in lower case.

    Raises:
        ValueError: If another reader has this name.
    """

    def register(reader: Callable[..., ReIDDataset]) -> Callable[..., ReIDDataset]:
        if name in _readers:
            raise ValueError(f"a dataset {name!r} is registered already")
        _readers[name] = reader
        return reader

    return register


@cache
def _load_plugins() -> None:
    """Import what installed packages, this one included, announce under the entry points ``nextreid.datasets``."""
    for plugin in entry_points(group="nextreid.datasets"):
        plugin.load()


def list_datasets() -> list[str]:
    """Return the names of the datasets that `load_dataset` knows, sorted."""
    _load_plugins()
    return sorted(_readers)


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    captions: str | Path | None = None,
    modalities: Sequence[str] | None = None,
    **options: Any,
) -> ReIDDataset:
    """Load a dataset.

    What the reader noticed (images missing, files that it does not know, captions without an image) is in the
    dataset's `notes` and is logged once.

    Args:
        name: One of `list_datasets`.
        root: Folder of the dataset, or the folder that holds it; for "manifest" the file.
        captions: Folder with the published caption files ``{train,test}_{RGB,NI,TI}.json``, or one that holds it.
        modalities: Modalities to read, in this order; None reads all.
        **options: Further keywords of this dataset, such as ``complete`` of "wmveid863", ``protocol`` of "manifest",
            ``pattern`` of "pattern" or ``seed`` of "synthetic-persons".

    Returns:
        The dataset, each split sorted by key.

    Raises:
        ValueError: If the name is unknown, an argument is missing or not one of this dataset, or files do not fit.
        FileNotFoundError: If a folder or file is missing; names what was looked for and the expected layout.
    """
    _load_plugins()
    if name not in _readers:
        raise ValueError(unknown("dataset", name, list_datasets()))
    named = {"root": root, "captions": captions, "modalities": modalities}
    given = {key: value for key, value in named.items() if value is not None} | options
    signature = inspect.signature(_readers[name])
    try:
        signature.bind(**given)
    except TypeError as error:
        hint = " (--root)" if "argument: 'root'" in str(error) else ""
        takes = ", ".join(signature.parameters)
        raise ValueError(f"dataset {name!r}: {error}{hint}; it takes {takes}") from error
    dataset = _readers[name](**given)
    if lacking := missing_counts(dataset):
        _logger.warning("%s: not the whole dataset as published: %s", name, "; ".join(lacking))
    # notes of a synthetic dataset are no surprise; what a reader found in files may be one
    level = logging.WARNING if root is not None else logging.INFO
    for note in dataset.notes:
        _logger.log(level, "%s: %s", name, note)
    return dataset
