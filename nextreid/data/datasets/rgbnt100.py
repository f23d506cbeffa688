"""RGBNT100 and RGBN300: vehicles whose modalities lie side by side in one file (Li et al., HAMNet, AAAI 2020)."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..captions import add_captions, caption_home
from ..image import ImageFile
from ..sample import MODALITIES, ReIDDataset, Sample
from .folder_layout import choose_modalities, find_home, note_shared_identities, note_unknown, nothing_of_form
from .query import note_difference, query_and_gallery, rebuild_query
from .registry import register_dataset

_LAYOUT = "{}/rgbir/{{bounding_box_train,query,bounding_box_test}}/0548_c0002_000.jpg"
_NAME = re.compile(r"(\d{4})_c(\d{4})_(\d+)\.(jpg|jpeg|png)", re.IGNORECASE)
_SPLITS = ("bounding_box_train", "bounding_box_test")
_WIDTH, _HEIGHT = 256, 128


@register_dataset("rgbnt100")
def read_rgbnt100(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = MODALITIES
) -> ReIDDataset:
    """Read RGBNT100 from its published tree.

    A file is 768 x 128 pixels: the RGB, near infrared and thermal image side by side, cut at 256 and 512; files of
    another size are refused when they are opened. Queries are the files of the folder ``query``, compared with their
    rule, every fifth frame of an identity before a camera (000, 005, …); without the folder the rule gives them.

    Args:
        root: The folder ``RGBNT100``, the one that holds it, or ``rgbir`` in it.
        captions: Folder with ``{train,test}_{RGB,NI,TI}.json``, or one that holds it, or None.
        modalities: Which of "rgb", "nir", "tir", in which order.

    Returns:
        The dataset; key is the file name, camid counts from 0, sceneid is -1.

    Raises:
        FileNotFoundError: If a folder or every caption file is missing.
        ValueError: If no file name is of the published form, or captions fit no image.
    """
    chosen = choose_modalities(modalities, MODALITIES)
    home = find_home(root, ("RGBNT100/rgbir", "rgbir", "RGBNT100"), _SPLITS, _LAYOUT.format("RGBNT100"))
    texts = caption_home(captions, ("RGBNT100", "100"), chosen)
    notes: list[str] = []
    train, query, gallery = _read(home, texts, chosen, MODALITIES, notes)
    every_fifth = tuple(sample for sample in gallery if int(Path(sample.key).stem.rsplit("_", 1)[1]) % 5 == 0)
    if query is None:
        notes.append(f"query: no folder query, rebuilt by its rule, every fifth frame: {len(every_fifth)} samples")
        query = every_fifth
    else:
        note_difference(every_fifth, query, ("every-fifth-frame", "query"), "folder", notes)
    return ReIDDataset("rgbnt100", chosen, "vehicle", "rgbnt100", train, query, gallery, tuple(notes))


@register_dataset("rgbn300")
def read_rgbn300(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = ("rgb", "nir")
) -> ReIDDataset:
    """Read RGBN300 from its published tree, that of RGBNT100 with files of 512 x 128 pixels: RGB and near infrared.

    Args:
        root: The folder ``RGBN300`` (or ``RGBNT300``), the one that holds it, or ``rgbir`` in it.
        captions: Folder with ``{train,test}_{RGB,NI}.json``, or one that holds it, or None.
        modalities: Which of "rgb", "nir", in which order.

    Returns:
        The dataset; key is the file name, camid counts from 0, sceneid is -1. Where the folder ``query`` is missing,
        all test samples that have a match from another camera are queries.

    Raises:
        FileNotFoundError: If a folder or every caption file is missing.
        ValueError: If no file name is of the published form, or captions fit no image.
    """
    in_file = ("rgb", "nir")
    chosen = choose_modalities(modalities, in_file)
    places = ("RGBN300/rgbir", "RGBNT300/rgbir", "rgbir", "RGBN300", "RGBNT300")
    home = find_home(root, places, _SPLITS, _LAYOUT.format("RGBN300"))
    texts = caption_home(captions, ("RGBN300", "RGBNT300", "300"), chosen)
    notes: list[str] = []
    train, query, gallery = _read(home, texts, chosen, in_file, notes)
    if query is None:
        query = rebuild_query(gallery, notes)
    return ReIDDataset("rgbn300", chosen, "vehicle", "rgbn300", train, query, gallery, tuple(notes))


def _read(
    home: Path, texts: Path | None, modalities: tuple[str, ...], in_file: tuple[str, ...], notes: list[str]
) -> tuple[tuple[Sample, ...], tuple[Sample, ...] | None, tuple[Sample, ...]]:
    """Return train, query (None where there is no such folder) and gallery."""

    def read(split: str, folder: str) -> list[Sample]:
        return _read_folder(split, home / folder, modalities, in_file, notes)

    train = tuple(add_captions(read("train", _SPLITS[0]), texts, "train", modalities, notes))
    published = read("query", "query") if (home / "query").is_dir() else None
    query, gallery = query_and_gallery(published or (), read("test", _SPLITS[1]), texts, modalities, notes)
    note_shared_identities(train, (*query, *gallery), notes)
    return train, None if published is None else query, gallery


def _read_folder(
    split: str, folder: Path, modalities: tuple[str, ...], in_file: tuple[str, ...], notes: list[str]
) -> list[Sample]:
    """Return the samples of a folder of files in which the images of `in_file` lie side by side."""
    size = (_WIDTH * len(in_file), _HEIGHT)
    edges = [_WIDTH * in_file.index(modality) for modality in modalities]
    samples, unknown = [], []
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match is None:
            unknown.append(path.name)
            continue
        images = tuple(ImageFile(path, (left, 0, left + _WIDTH, _HEIGHT), size) for left in edges)
        samples.append(Sample(path.name, int(match[1]), int(match[2]) - 1, -1, images))
    if not samples:
        raise nothing_of_form(split, str(folder), unknown)
    note_unknown(split, unknown, notes)
    return sorted(samples, key=lambda sample: sample.key)
