"""The published datasets: what each folder tree looks like, and which of its samples are queries."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from ..image import ImageFile
from ..sample import MODALITIES, ReIDDataset, Sample
from ..split import with_match
from .published_tree import PublishedTree, image_files
from .registry import register_dataset


class _RGBNT201(PublishedTree):
    name = "rgbnt201"
    object_type = "person"
    homes = ("RGBNT201",)
    captions = ("RGBNT201", "201")
    splits = ("train_171", "test")
    layout = "RGBNT201/{train_171,test}/{RGB,NI,TI}/000258_cam1_0_00.jpg"
    form = r"(?P<pid>\d{6})_cam(?P<camid>[1-9])_\d+_\d+"


@register_dataset("rgbnt201")
def read_rgbnt201(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = MODALITIES
) -> ReIDDataset:
    """Read RGBNT201, persons in three spectra (Zheng et al., AAAI 2021); for the arguments see `PublishedTree`.

    The split is the one in use: 171 identities train; the whole test folder is query and gallery alike.

    Returns:
        The dataset; key is the file name, camid counts from 0, sceneid is -1.
    """
    tree = _RGBNT201(root, captions, modalities)
    train, test = tree.read("train", "train_171"), tree.read("test", "test")
    return tree.dataset(train, test, test)


class _Market1501MM(PublishedTree):
    name = "market1501-mm"
    object_type = "person"
    homes = ("Market1501-MM", "Market-1501-RGBNT")
    captions = homes
    splits = ("train", "query", "gallery")
    layout = "Market1501-MM/{train,query,gallery}/{RGB,NI,TI}/0002_c1s1_000451_03.jpg"
    form = r"(?P<pid>-1|\d{4})_c(?P<camid>[1-9])s\d_\d+_\d+"

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
    """Read Market-1501-MM, the persons of Market-1501 with NIR and TIR images generated from the visible ones.

    As in Market-1501, images of identity -1 (junk) take no part and are left out, those of identity 0
    (distractors) stay in the gallery and match nothing. How many of each is noted. For the arguments see
    `PublishedTree`.

    Returns:
        The dataset; key is the file name, camid counts from 0, sceneid is -1.
    """
    return _Market1501MM(root, captions, modalities).load("train", "gallery", "gallery")


class _RGBN300(PublishedTree):
    name = "rgbn300"
    homes: ClassVar[Sequence[str]] = ("RGBN300/rgbir", "RGBNT300/rgbir", "rgbir", "RGBN300", "RGBNT300")
    captions: ClassVar[Sequence[str]] = ("RGBN300", "RGBNT300", "300")
    splits = ("bounding_box_train", "bounding_box_test")
    folders = dict.fromkeys(("rgb", "nir"), "")  # all modalities are in one file, in this order
    layout = "RGBN300/rgbir/{bounding_box_train,query,bounding_box_test}/0548_c0002_000.jpg"
    form = r"(?P<pid>\d{4})_c(?P<camid>\d{4})_\d+"
    part: ClassVar[tuple[int, int]] = (256, 128)  # width and height of one image

    def samples(self, split: str, folder: str) -> list[Sample]:
        width, height = self.part
        in_file = list(self.folders)
        edges = [width * in_file.index(modality) for modality in self.modalities]
        samples, unknown = [], []
        for path in image_files(self.home / folder):
            if name := self.parse(path):
                boxes = [(left, 0, left + width, height) for left in edges]
                images = tuple(ImageFile(path, box, (width * len(in_file), height)) for box in boxes)
                samples.append(Sample(*name, images))
            else:
                unknown.append(path.name)
        self.note_unknown(split, [str(self.home / folder)], unknown, found=bool(samples))
        return sorted(samples, key=lambda sample: sample.key)


@register_dataset("rgbn300")
def read_rgbn300(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = ("rgb", "nir")
) -> ReIDDataset:
    """Read RGBN300, a tree like that of RGBNT100 with files of 512 x 128 pixels: RGB and near infrared.

    Where the folder ``query`` is missing, all test samples that have a match from another camera are queries. For the
    arguments see `PublishedTree`.

    Returns:
        The dataset; key is the file name, camid counts from 0, sceneid is -1.
    """
    return _RGBN300(root, captions, modalities).load("bounding_box_train", "bounding_box_test")


class _RGBNT100(_RGBN300):
    name = "rgbnt100"
    homes = ("RGBNT100/rgbir", "rgbir", "RGBNT100")
    captions = ("RGBNT100", "100")
    folders = dict.fromkeys(MODALITIES, "")
    layout = "RGBNT100/rgbir/{bounding_box_train,query,bounding_box_test}/0548_c0002_000.jpg"

    def query_and_gallery(self, folder: str, split: str = "test") -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
        query, gallery = super().query_and_gallery(folder, split)
        if (self.home / "query").is_dir():
            self.note_difference(self.every_fifth(gallery), query, ("every-fifth-frame", "query"), "folder")
        return query, gallery

    def rebuild_query(self, gallery: Sequence[Sample]) -> tuple[Sample, ...]:
        query = self.every_fifth(gallery)
        self.notes.append(f"query: no folder query, rebuilt by its rule, every fifth frame: {len(query)} samples")
        return query

    @staticmethod
    def every_fifth(gallery: Sequence[Sample]) -> tuple[Sample, ...]:
        return tuple(sample for sample in gallery if int(Path(sample.key).stem.rsplit("_", 1)[1]) % 5 == 0)


@register_dataset("rgbnt100")
def read_rgbnt100(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = MODALITIES
) -> ReIDDataset:
    """Read RGBNT100, vehicles (Li et al., HAMNet, AAAI 2020); for the arguments see `PublishedTree`.

    A file is 768 x 128 pixels: the RGB, near infrared and thermal image side by side, cut at 256 and 512; files of
    another size are rejected when they are opened. Queries are the files of the folder ``query``, compared with their
    rule, every fifth frame of an identity before a camera (000, 005, …); without the folder the rule gives them.

    Returns:
        The dataset; key is the file name, camid counts from 0, sceneid is -1.
    """
    return _RGBNT100(root, captions, modalities).load("bounding_box_train", "bounding_box_test")


class _Vehicles(PublishedTree):
    """A folder for each identity, and in it one for each modality; cameras are views, counted from 0."""

    folders: ClassVar[Mapping[str, str]] = {"rgb": "vis", "nir": "ni", "tir": "th"}
    by_identity = True
    first_camera = 0


class _MSVR310(_Vehicles):
    name = "msvr310"
    homes = ("MSVR310",)
    captions = ("MSVR310", "310")
    splits = ("bounding_box_train", "bounding_box_test")
    layout = "MSVR310/{bounding_box_train,query3,bounding_box_test}/0002/{vis,ni,th}/0002_s002_v0_000.jpg"
    # an image in another identity's folder has no trustworthy label
    form = r"(?P<pid>\d{4})/(?P=pid)_s(?P<sceneid>\d{3})_v(?P<camid>\d)_\d+"


@register_dataset("msvr310")
def read_msvr310(
    root: str | Path, *, captions: str | Path | None = None, modalities: Sequence[str] = MODALITIES
) -> ReIDDataset:
    """Read MSVR310, vehicles (Zheng et al., Information Fusion 2023); for the arguments see `PublishedTree`.

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


class _WMVEID863(_Vehicles):
    name = "wmveid863"
    homes = ("WMVEID863",)
    captions = ("WMVEID863", "863")
    splits = ("train", "test")
    layout = "WMVEID863/{train,query,test}/0002/{vis,ni,th}/v0_n9_s002_020.jpg"
    form = r"(?P<pid>\d{4})/v(?P<camid>\d)_n\d_s(?:999|(?P<sceneid>\d{3}))_\d+"
    key = "{pid}_{name}"


@register_dataset("wmveid863")
def read_wmveid863(
    root: str | Path,
    *,
    captions: str | Path | None = None,
    modalities: Sequence[str] = MODALITIES,
    complete: bool = True,
) -> ReIDDataset:
    """Read WMVEID863, vehicles under strong light (Zheng et al., FACENet); for the arguments see `PublishedTree`.

    Some of its images lack a partner and one file is misnamed; the published count of 3,481 + 1,228 samples is that
    of samples with all three modalities. What is left out is named in the notes, and so are the identities that its
    train and test split share; with ``complete=False`` samples with missing modalities are read too. Where the folder
    ``query`` is missing, all test samples that have a match from another camera are queries.

    Returns:
        The dataset; key is the identity, ``_`` and the file name (the captions' item), camid the view 0 … 7, sceneid
        -1 where the name says 999.
    """
    return _WMVEID863(root, captions, modalities, complete).load("train", "test")
