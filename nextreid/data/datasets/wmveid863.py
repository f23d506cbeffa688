"""WMVEID863: vehicles in three spectra under strong light (Zheng et al., FACENet)."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..sample import MODALITIES, ReIDDataset
from .published import VIS_NI_TH, Name, PublishedTree
from .registry import register_dataset

_NAME = re.compile(r"v(\d)_n\d_s(\d{3})_\d+\.(jpg|jpeg|png)", re.IGNORECASE)
_UNKNOWN_SCENE = 999


class _WMVEID863(PublishedTree):
    name = "wmveid863"
    homes = ("WMVEID863",)
    captions = ("WMVEID863", "863")
    splits = ("train", "test")
    folders = VIS_NI_TH
    by_identity = True
    layout = "WMVEID863/{train,query,test}/0002/{vis,ni,th}/v0_n9_s002_020.jpg"

    def parse(self, path: Path) -> Name | None:
        match, identity = _NAME.fullmatch(path.name), path.parent.parent.name
        if match is None or not re.fullmatch(r"\d{4}", identity):
            return None
        scene = -1 if int(match[2]) == _UNKNOWN_SCENE else int(match[2])
        return Name(f"{identity}_{path.name}", int(identity), camid=int(match[1]), sceneid=scene)


@register_dataset("wmveid863")
def read_wmveid863(
    root: str | Path,
    *,
    captions: str | Path | None = None,
    modalities: Sequence[str] = MODALITIES,
    complete: bool = True,
) -> ReIDDataset:
    """Read WMVEID863 from its published tree; for the arguments and errors see `PublishedTree`.

    Some of its images lack a partner and one file is misnamed; the published count of 3,481 + 1,228 samples is that
    of samples with all three modalities. What is left out is named in the notes, and so are the identities that its
    train and test split share; with ``complete=False`` samples with missing modalities are read too. Where the folder
    ``query`` is missing, all test samples that have a match from another camera are queries.

    Returns:
        The dataset; key is the identity, ``_`` and the file name (the captions' item), camid the view 0 … 7, sceneid
        -1 where the name says 999.
    """
    tree = _WMVEID863(root, captions, modalities, complete)
    train = tree.read("train", "train")
    query, gallery = tree.query_and_gallery("test")
    return tree.dataset(train, tree.rebuild_query(gallery) if query is None else query, gallery)
