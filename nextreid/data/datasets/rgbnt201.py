"""RGBNT201: persons in three spectra (Zheng et al., AAAI 2021)."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..sample import MODALITIES, ReIDDataset
from .published import Name, PublishedTree
from .registry import register_dataset

_NAME = re.compile(r"(\d{6})_cam([1-9])_\d+_\d+\.(jpg|jpeg|png)", re.IGNORECASE)


class _RGBNT201(PublishedTree):
    name = "rgbnt201"
    object_type = "person"
    homes = ("RGBNT201",)
    captions = ("RGBNT201", "201")
    splits = ("train_171", "test")
    layout = "RGBNT201/{train_171,test}/{RGB,NI,TI}/000258_cam1_0_00.jpg"

    def parse(self, path: Path) -> Name | None:
        match = _NAME.fullmatch(path.name)
        return Name(path.name, int(match[1]), int(match[2]) - 1) if match else None


@register_dataset("rgbnt201")
def read_rgbnt201(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = MODALITIES
) -> ReIDDataset:
    """Read RGBNT201 from its published tree; for the arguments and errors see `PublishedTree`.

    The split is the one in use: 171 identities train; the whole test folder is query and gallery alike.

    Returns:
        The dataset; key is the file name, camid counts from 0, sceneid is -1.
    """
    tree = _RGBNT201(root, captions, modalities)
    train, test = tree.read("train", "train_171"), tree.read("test", "test")
    return tree.dataset(train, test, test)
