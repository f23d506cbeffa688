"""Market-1501-MM: the persons of Market-1501 with near infrared and thermal images generated from the visible ones."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..sample import MODALITIES, ReIDDataset, Sample
from .published import Name, PublishedTree
from .registry import register_dataset

_NAME = re.compile(r"(-1|\d{4})_c([1-9])s\d_\d+_\d+\.(jpg|jpeg|png)", re.IGNORECASE)


class _Market1501MM(PublishedTree):
    name = "market1501-mm"
    object_type = "person"
    homes = ("Market1501-MM", "Market-1501-RGBNT")
    captions = homes
    splits = ("train", "query", "gallery")
    layout = "Market1501-MM/{train,query,gallery}/{RGB,NI,TI}/0002_c1s1_000451_03.jpg"

    def parse(self, path: Path) -> Name | None:
        match = _NAME.fullmatch(path.name)
        return Name(path.name, int(match[1]), int(match[2]) - 1) if match else None

    def samples(self, split: str, folder: str) -> list[Sample]:
        samples = super().samples(split, folder)
        for pid, what in ((-1, "left out, they are junk"), (0, "are distractors")):
            if count := sum(sample.pid == pid for sample in samples):
                self.notes.append(f"{split}: {count} of {len(samples)} samples {what} (identity {pid})")
        return [sample for sample in samples if sample.pid >= 0]


@register_dataset("market1501-mm")
def read_market1501_mm(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = MODALITIES
) -> ReIDDataset:
    """Read Market-1501-MM from its published tree; for the arguments and errors see `PublishedTree`.

    As in Market-1501, images of identity -1 (junk) take no part and are left out, those of identity 0
    (distractors) stay in the gallery and match nothing. How many of each is noted.

    Returns:
        The dataset; key is the file name, camid counts from 0, sceneid is -1.
    """
    tree = _Market1501MM(root, captions, modalities)
    train = tree.read("train", "train")
    query, gallery = tree.query_and_gallery("gallery", "gallery")
    return tree.dataset(train, query or (), gallery)
