"""RGBNT201: persons in three spectra (Zheng et al., AAAI 2021)."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..sample import MODALITIES, ReIDDataset, Sample
from .registry import register_dataset
from .tree import add_captions, choose_modalities, find_home, pair_by_name, require_folder

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
        captions: Folder with ``{train,test}_{RGB,NI,TI}.json``, or None.
        modalities: Which of "rgb", "nir", "tir", in which order.

    Returns:
        The data set; key is the file name, camid counts from 0, sceneid is -1.

    Raises:
        FileNotFoundError: If a folder or caption file is missing.
        ValueError: If no file name is of the published form, or captions fit no picture.
    """
    chosen = choose_modalities(modalities, _FOLDERS)
    home = find_home(root, "RGBNT201", ("train_171", "test"), _LAYOUT)
    notes: list[str] = []
    splits: list[list[Sample]] = []
    for split, folder in (("train", "train_171"), ("test", "test")):
        folders = {m: [require_folder(home / folder / _FOLDERS[m], _LAYOUT)] for m in chosen}
        samples = pair_by_name(split, folders, _parse, notes)
        splits.append(samples if captions is None else add_captions(samples, captions, split, chosen, notes))
    train, test = (tuple(samples) for samples in splits)
    return ReIDDataset("rgbnt201", chosen, "person", "rgbnt201", train, test, test, tuple(notes))


def _parse(path: Path) -> tuple[int, int, int] | None:
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2]) - 1, -1) if match else None
