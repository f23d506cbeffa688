"""Market-1501-MM: the persons of Market-1501 with near infrared and thermal images made from the visible ones."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..captions import add_captions, caption_home
from ..sample import MODALITIES, ReIDDataset, Sample
from .folder_layout import Name, choose_modalities, find_home, modality_folders, note_shared_identities, pair_by_name
from .query import query_and_gallery
from .registry import register_dataset

_FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
_LAYOUT = "Market1501-MM/{train,query,gallery}/{RGB,NI,TI}/0002_c1s1_000451_03.jpg"
_NAME = re.compile(r"(-1|\d{4})_c([1-9])s\d_\d+_\d+\.(jpg|jpeg|png)", re.IGNORECASE)


@register_dataset("market1501-mm")
def read_market1501_mm(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = MODALITIES
) -> ReIDDataset:
    """Read Market-1501-MM from its published tree.

    As Market-1501 has it: images of identity -1 (junk) take no part and are left out, those of identity 0
    (distractors) stay in the gallery and match nothing. How many of each is noted.

    Args:
        root: The folder ``Market1501-MM`` (or ``Market-1501-RGBNT``), or the one that holds it.
        captions: Folder with ``{train,test}_{RGB,NI,TI}.json``, or one that holds it, or None.
        modalities: Which of "rgb", "nir", "tir", in which order.

    Returns:
        The dataset; key is the file name, camid counts from 0, sceneid is -1.

    Raises:
        FileNotFoundError: If a folder or every caption file is missing.
        ValueError: If no file name is of the published form, or captions fit no image.
    """
    chosen = choose_modalities(modalities, _FOLDERS)
    home = find_home(root, ("Market1501-MM", "Market-1501-RGBNT"), ("train", "query", "gallery"), _LAYOUT)
    texts = caption_home(captions, ("Market1501-MM", "Market-1501-RGBNT"), chosen)
    notes: list[str] = []

    def read(split: str) -> list[Sample]:
        folders = modality_folders(home / split, {m: _FOLDERS[m] for m in chosen}, _LAYOUT)
        samples = pair_by_name(split, folders, _parse, notes)
        junk, distractors = (sum(sample.pid == pid for sample in samples) for pid in (-1, 0))
        if junk:
            notes.append(f"{split}: {junk} of {len(samples)} samples left out, they are junk (identity -1)")
        if distractors:
            notes.append(f"{split}: {distractors} of {len(samples)} samples are distractors (identity 0)")
        return [sample for sample in samples if sample.pid >= 0]

    train = tuple(add_captions(read("train"), texts, "train", chosen, notes))
    query, gallery = query_and_gallery(read("query"), read("gallery"), texts, chosen, notes)
    note_shared_identities(train, (*query, *gallery), notes)
    return ReIDDataset("market1501-mm", chosen, "person", "market1501-mm", train, query, gallery, tuple(notes))


def _parse(path: Path) -> Name | None:
    match = _NAME.fullmatch(path.name)
    return Name(path.name, int(match[1]), int(match[2]) - 1) if match else None
