"""WMVEID863: vehicles in three spectra under strong light (Zheng et al., FACENet)."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..captions import add_captions, caption_home
from ..sample import MODALITIES, ReIDDataset, Sample
from .folder_layout import Name, choose_modalities, find_home, identity_folders, note_shared_identities, pair_by_name
from .query import query_and_gallery, rebuild_query
from .registry import register_dataset

_FOLDERS = {"rgb": "vis", "nir": "ni", "tir": "th"}
_LAYOUT = "WMVEID863/{train,query,test}/0002/{vis,ni,th}/v0_n9_s002_020.jpg"
_NAME = re.compile(r"v(\d)_n\d_s(\d{3})_\d+\.(jpg|jpeg|png)", re.IGNORECASE)
_UNKNOWN_SCENE = 999


@register_dataset("wmveid863")
def read_wmveid863(
    root: str | Path,
    *,
    captions: str | Path | None = None,
    modalities: Sequence[str] = MODALITIES,
    complete: bool = True,
) -> ReIDDataset:
    """Read WMVEID863 from its published tree, paired by file name.

    Some of its images lack a partner and one file is misnamed; the published count of 3,481 + 1,228 samples is that
    of samples with all three modalities. What is left out is named in the notes, and so are the identities that its
    train and test split share. Where the folder ``query`` is missing, all test samples that have a match from
    another camera are queries.

    Args:
        root: The folder ``WMVEID863`` or the one that holds it.
        captions: Folder with ``{train,test}_{RGB,NI,TI}.json``, or one that holds it, or None.
        modalities: Which of "rgb", "nir", "tir", in which order.
        complete: Read only samples that have every modality; False reads all, with modalities missing.

    Returns:
        The dataset; key is the identity, ``_`` and the file name (the captions' item), camid the view 0 … 7, sceneid
        -1 where the name says 999.

    Raises:
        FileNotFoundError: If a folder or every caption file is missing.
        ValueError: If no file name is of the published form, or captions fit no image.
    """
    chosen = choose_modalities(modalities, _FOLDERS)
    home = find_home(root, ("WMVEID863",), ("train", "test"), _LAYOUT)
    texts = caption_home(captions, ("WMVEID863", "863"), chosen)
    names = {m: _FOLDERS[m] for m in chosen}
    notes: list[str] = []

    def read(folder: str) -> list[Sample]:
        return pair_by_name(folder, identity_folders(home / folder, names, _LAYOUT), _parse, notes, complete=complete)

    train = tuple(add_captions(read("train"), texts, "train", chosen, notes))
    published = read("query") if (home / "query").is_dir() else None
    query, gallery = query_and_gallery(published or (), read("test"), texts, chosen, notes)
    if published is None:
        query = rebuild_query(gallery, notes)
    note_shared_identities(train, (*gallery, *query), notes)
    return ReIDDataset("wmveid863", chosen, "vehicle", "wmveid863", train, query, gallery, tuple(notes))


def _parse(path: Path) -> Name | None:
    match, identity = _NAME.fullmatch(path.name), path.parent.parent.name
    if match is None or not re.fullmatch(r"\d{4}", identity):
        return None
    scene = int(match[2])
    return Name(
        f"{identity}_{path.name}", int(identity), camid=int(match[1]), sceneid=-1 if scene == _UNKNOWN_SCENE else scene
    )
