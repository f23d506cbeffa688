"""RGBNT201: persons in three spectra (Zheng et al., AAAI 2021)."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..captions import add_captions, caption_home
from ..sample import MODALITIES, ReIDDataset
from .folder_layout import Name, choose_modalities, find_home, modality_folders, note_shared_identities, pair_by_name
from .registry import register_dataset

_FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
_LAYOUT = "RGBNT201/{train_171,test}/{RGB,NI,TI}/000258_cam1_0_00.jpg"
_NAME = re.compile(r"(\d{6})_cam([1-9])_\d+_\d+\.(jpg|jpeg|png)", re.IGNORECASE)


@register_dataset("rgbnt201")
def read_rgbnt201(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = MODALITIES
) -> ReIDDataset:
    """Read RGBNT201 from its published tree.

    The split is the one in use: 171 identities train; the whole test folder is query and gallery alike.

    Args:
        root: The folder ``RGBNT201`` or the one that holds it.
        captions: Folder with ``{train,test}_{RGB,NI,TI}.json``, or one that holds it, or None.
        modalities: Which of "rgb", "nir", "tir", in which order.

    Returns:
        The dataset; key is the file name, camid counts from 0, sceneid is -1.

    Raises:
        FileNotFoundError: If a folder or every caption file is missing.
        ValueError: If no file name is of the published form, or captions fit no image.
    """
    chosen = choose_modalities(modalities, _FOLDERS)
    home = find_home(root, ("RGBNT201",), ("train_171", "test"), _LAYOUT)
    texts = caption_home(captions, ("RGBNT201", "201"), chosen)
    notes: list[str] = []
    splits = []
    for split, folder in (("train", "train_171"), ("test", "test")):
        folders = modality_folders(home / folder, {m: _FOLDERS[m] for m in chosen}, _LAYOUT)
        samples = pair_by_name(split, folders, _parse, notes)
        splits.append(tuple(add_captions(samples, texts, split, chosen, notes)))
    train, test = splits
    note_shared_identities(train, test, notes)
    return ReIDDataset("rgbnt201", chosen, "person", "rgbnt201", train, test, test, tuple(notes))


def _parse(path: Path) -> Name | None:
    match = _NAME.fullmatch(path.name)
    return Name(path.name, int(match[1]), int(match[2]) - 1) if match else None
