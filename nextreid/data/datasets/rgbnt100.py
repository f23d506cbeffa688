"""RGBNT100 and RGBN300: vehicles whose modalities lie side by side in one file (Li et al., HAMNet, AAAI 2020)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ..image import ImageFile
from ..sample import MODALITIES, ReIDDataset, Sample
from .published import PublishedTree
from .registry import register_dataset

_LAYOUT = "{}/rgbir/{{bounding_box_train,query,bounding_box_test}}/0548_c0002_000.jpg"
_NAME = re.compile(r"(\d{4})_c(\d{4})_(\d+)\.(jpg|jpeg|png)", re.IGNORECASE)
_WIDTH, _HEIGHT = 256, 128


class _RGBNT100(PublishedTree):
    name = "rgbnt100"
    homes: ClassVar[Sequence[str]] = ("RGBNT100/rgbir", "rgbir", "RGBNT100")
    captions: ClassVar[Sequence[str]] = ("RGBNT100", "100")
    splits = ("bounding_box_train", "bounding_box_test")
    folders = dict.fromkeys(MODALITIES, "")  # all modalities are in one file, in this order
    layout = _LAYOUT.format("RGBNT100")

    def samples(self, split: str, folder: str) -> list[Sample]:
        in_file = list(self.folders)
        size = (_WIDTH * len(in_file), _HEIGHT)
        edges = [_WIDTH * in_file.index(modality) for modality in self.modalities]
        samples, unknown = [], []
        for path in (self.home / folder).iterdir():
            match = _NAME.fullmatch(path.name)
            if match is None:
                unknown.append(path.name)
                continue
            images = tuple(ImageFile(path, (left, 0, left + _WIDTH, _HEIGHT), size) for left in edges)
            samples.append(Sample(path.name, int(match[1]), int(match[2]) - 1, -1, images))
        self.note_unknown(split, [str(self.home / folder)], unknown, found=bool(samples))
        return sorted(samples, key=lambda sample: sample.key)


class _RGBN300(_RGBNT100):
    name = "rgbn300"
    homes = ("RGBN300/rgbir", "RGBNT300/rgbir", "rgbir", "RGBN300", "RGBNT300")
    captions = ("RGBN300", "RGBNT300", "300")
    folders = dict.fromkeys(("rgb", "nir"), "")
    layout = _LAYOUT.format("RGBN300")


@register_dataset("rgbnt100")
def read_rgbnt100(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = MODALITIES
) -> ReIDDataset:
    """Read RGBNT100 from its published tree; for the arguments and errors see `PublishedTree`.

    A file is 768 x 128 pixels: the RGB, near infrared and thermal image side by side, cut at 256 and 512; files of
    another size are rejected when they are opened. Queries are the files of the folder ``query``, compared with their
    rule, every fifth frame of an identity before a camera (000, 005, …); without the folder the rule gives them.

    Returns:
        The dataset; key is the file name, camid counts from 0, sceneid is -1.
    """
    tree = _RGBNT100(root, captions, modalities)
    train = tree.read("train", "bounding_box_train")
    query, gallery = tree.query_and_gallery("bounding_box_test")
    every_fifth = tuple(sample for sample in gallery if int(Path(sample.key).stem.rsplit("_", 1)[1]) % 5 == 0)
    if query is None:
        tree.notes.append(f"query: no folder query, rebuilt by its rule, every fifth frame: {len(every_fifth)} samples")
        query = every_fifth
    else:
        tree.note_difference(every_fifth, query, ("every-fifth-frame", "query"), "folder")
    return tree.dataset(train, query, gallery)


@register_dataset("rgbn300")
def read_rgbn300(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = ("rgb", "nir")
) -> ReIDDataset:
    """Read RGBN300 from its published tree, that of RGBNT100 with files of 512 x 128 pixels: RGB and near infrared.

    Where the folder ``query`` is missing, all test samples that have a match from another camera are queries. For the
    arguments and errors see `PublishedTree`.

    Returns:
        The dataset; key is the file name, camid counts from 0, sceneid is -1.
    """
    tree = _RGBN300(root, captions, modalities)
    train = tree.read("train", "bounding_box_train")
    query, gallery = tree.query_and_gallery("bounding_box_test")
    return tree.dataset(train, tree.rebuild_query(gallery) if query is None else query, gallery)
