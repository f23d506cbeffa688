"""MSVR310: vehicles in three spectra (Zheng et al., Information Fusion 2023)."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..sample import MODALITIES, ReIDDataset
from ..split import with_match
from .published import VIS_NI_TH, Name, PublishedTree
from .registry import register_dataset

_NAME = re.compile(r"(\d{4})_s(\d{3})_v(\d)_\d+\.(jpg|jpeg|png)", re.IGNORECASE)


class _MSVR310(PublishedTree):
    name = "msvr310"
    homes = ("MSVR310",)
    captions = ("MSVR310", "310")
    splits = ("bounding_box_train", "bounding_box_test")
    folders = VIS_NI_TH
    by_identity = True
    layout = "MSVR310/{bounding_box_train,query3,bounding_box_test}/0002/{vis,ni,th}/0002_s002_v0_000.jpg"

    def parse(self, path: Path) -> Name | None:
        match = _NAME.fullmatch(path.name)
        # an image in another identity's folder has no trustworthy label
        if match is None or match[1] != path.parent.parent.name:
            return None
        return Name(path.name, int(match[1]), camid=int(match[3]), sceneid=int(match[2]))


@register_dataset("msvr310")
def read_msvr310(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = MODALITIES
) -> ReIDDataset:
    """Read MSVR310 from its published tree; for the arguments and errors see `PublishedTree`.

    The query list is rebuilt from its rule: all gallery samples of identities seen in at least two scenes. Where the
    folder ``query3`` is there, the list is compared to it, and a difference is noted.

    Returns:
        The dataset; key is the file name, camid (the view, 0 … 7) and sceneid are the name's numbers.
    """
    tree = _MSVR310(root, captions, modalities)
    train, gallery = tree.read("train", "bounding_box_train"), tree.read("test", "bounding_box_test")
    query = with_match(gallery, gallery, "scene")
    if (tree.home / "query3").is_dir():
        tree.note_difference(query, tree.samples("query3", "query3"), ("scene", "query3"), "rule")
    return tree.dataset(train, query, gallery)
