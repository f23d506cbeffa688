"""MSVR310: vehicles in three spectra (Zheng et al., Information Fusion 2023)."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..sample import MODALITIES, ReIDDataset, Sample
from .registry import register_dataset
from .tree import add_captions, choose_modalities, find_home, pair_by_name

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
        captions: Folder with ``{train,test}_{RGB,NI,TI}.json``, or None.
        modalities: Which of "rgb", "nir", "tir", in which order.

    Returns:
        The data set; key is the file name, camid (the view, 0 … 7) and sceneid are the name's numbers.

    Raises:
        FileNotFoundError: If a folder or caption file is missing.
        ValueError: If no file name is of the published form, or captions fit no picture.
    """
    chosen = choose_modalities(modalities, _FOLDERS)
    home = find_home(root, "MSVR310", ("bounding_box_train", "bounding_box_test"), _LAYOUT)
    notes: list[str] = []
    splits: list[list[Sample]] = []
    for split, folder in (("train", "bounding_box_train"), ("test", "bounding_box_test")):
        samples = pair_by_name(split, _folders(home / folder, chosen), _parse, notes)
        splits.append(samples if captions is None else add_captions(samples, captions, split, chosen, notes))
    train, gallery = (tuple(samples) for samples in splits)
    query = _query(gallery)
    if (home / "query3").is_dir():
        _compare(query, pair_by_name("query3", _folders(home / "query3", chosen), _parse, []), notes)
    return ReIDDataset("msvr310", chosen, "vehicle", "msvr310", train, query, gallery, tuple(notes))


def _folders(split: Path, modalities: Iterable[str]) -> dict[str, list[Path]]:
    homes = [home for home in split.iterdir() if home.is_dir()]
    folders = {m: [home / _FOLDERS[m] for home in homes if (home / _FOLDERS[m]).is_dir()] for m in modalities}
    for modality, found in folders.items():
        if not found:
            raise FileNotFoundError(f"no folder {split}/*/{_FOLDERS[modality]}; expected {_LAYOUT}")
    return folders


def _parse(path: Path) -> tuple[int, int, int] | None:
    match = _NAME.fullmatch(path.name)
    # a picture in another identity's folder has no trustworthy label
    if match is None or match[1] != path.parent.parent.name:
        return None
    return int(match[1]), int(match[3]), int(match[2])


def _query(gallery: Iterable[Sample]) -> tuple[Sample, ...]:
    scenes: dict[int, set[int]] = {}
    for sample in gallery:
        scenes.setdefault(sample.pid, set()).add(sample.sceneid)
    return tuple(sample for sample in gallery if len(scenes[sample.pid]) > 1)


def _compare(query: Iterable[Sample], published: Iterable[Sample], notes: list[str]) -> None:
    rule, folder = ({sample.key for sample in samples} for samples in (query, published))
    if rule != folder:
        notes.append(
            f"query: the scene rule gives {len(rule)} samples (used), folder query3 has {len(folder)}; "
            f"{len(rule - folder)} only by the rule, {len(folder - rule)} only in the folder"
        )
