"""MSVR310: vehicles in three spectra (Zheng et al., Information Fusion 2023)."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..captions import add_captions, caption_home
from ..sample import MODALITIES, ReIDDataset
from ..split import with_match
from .folder_layout import Name, choose_modalities, find_home, identity_folders, note_shared_identities, pair_by_name
from .query import note_difference
from .registry import register_dataset

_FOLDERS = {"rgb": "vis", "nir": "ni", "tir": "th"}
_LAYOUT = "MSVR310/{bounding_box_train,query3,bounding_box_test}/0002/{vis,ni,th}/0002_s002_v0_000.jpg"
_NAME = re.compile(r"(\d{4})_s(\d{3})_v(\d)_\d+\.(jpg|jpeg|png)", re.IGNORECASE)


@register_dataset("msvr310")
def read_msvr310(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = MODALITIES
) -> ReIDDataset:
    """Read MSVR310 from its published tree.

    The query list is rebuilt from its rule: all gallery samples of identities seen in at least two scenes. Where the
    folder ``query3`` is there, the list is compared to it, and a difference is noted.

    Args:
        root: The folder ``MSVR310`` or the one that holds it.
        captions: Folder with ``{train,test}_{RGB,NI,TI}.json``, or one that holds it, or None.
        modalities: Which of "rgb", "nir", "tir", in which order.

    Returns:
        The dataset; key is the file name, camid (the view, 0 … 7) and sceneid are the name's numbers.

    Raises:
        FileNotFoundError: If a folder or every caption file is missing.
        ValueError: If no file name is of the published form, or captions fit no image.
    """
    chosen = choose_modalities(modalities, _FOLDERS)
    home = find_home(root, ("MSVR310",), ("bounding_box_train", "bounding_box_test"), _LAYOUT)
    texts = caption_home(captions, ("MSVR310", "310"), chosen)
    names = {m: _FOLDERS[m] for m in chosen}
    notes: list[str] = []
    splits = []
    for split, folder in (("train", "bounding_box_train"), ("test", "bounding_box_test")):
        samples = pair_by_name(split, identity_folders(home / folder, names, _LAYOUT), _parse, notes)
        splits.append(tuple(add_captions(samples, texts, split, chosen, notes)))
    train, gallery = splits
    query = with_match(gallery, gallery, "scene")
    if (home / "query3").is_dir():
        published = pair_by_name("query3", identity_folders(home / "query3", names, _LAYOUT), _parse, [])
        note_difference(query, published, ("scene", "query3"), "rule", notes)
    note_shared_identities(train, gallery, notes)
    return ReIDDataset("msvr310", chosen, "vehicle", "msvr310", train, query, gallery, tuple(notes))


def _parse(path: Path) -> Name | None:
    match = _NAME.fullmatch(path.name)
    # an image in another identity's folder has no trustworthy label
    if match is None or match[1] != path.parent.parent.name:
        return None
    return Name(path.name, int(match[1]), camid=int(match[3]), sceneid=int(match[2]))
