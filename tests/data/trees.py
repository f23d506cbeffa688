"""Writers of the published folder trees: real-form names, synthetic pixels, every file a link to one image."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# train: one identity with one camera, one with two; test: every identity has cameras 1 and 2
RGBNT201_TRAIN = (
    "000009_cam3_1_00.jpg",
    "000009_cam3_1_01.jpg",
    "000030_cam1_1_12.jpg",
    "000030_cam2_1_03.jpg",
    "000040_cam1_0_21.jpg",
)
RGBNT201_TEST = ("000258_cam1_0_00.jpg", "000258_cam2_0_18.jpg", "000260_cam1_0_00.jpg", "000260_cam2_0_19.jpg")

MSVR310_TRAIN = ("0001_s002_v0_000.jpg", "0001_s012_v4_003.jpg", "0003_s002_v1_000.jpg", "0003_s002_v4_001.jpg")
# 0018 and 0317 have one scene, 0030 has three
MSVR310_TEST = (
    "0018_s002_v1_000.jpg",
    "0018_s002_v4_001.jpg",
    "0030_s004_v5_002.jpg",
    "0030_s005_v7_005.jpg",
    "0030_s018_v0_000.jpg",
    "0317_s000_v2_001.jpg",
)

# The published defects: a misnamed RGB image (0865), images without a partner (0865, 0406, 0476), identities in
# both splits, one of them with an equal name (0451); 0018 and 0030 come from MSVR310, the test's 0900 has one view.
WMVEID863 = {
    "train/0018/vis,ni,th": ("v1_n9_s002_020.jpg", "v4_n9_s002_021.jpg"),
    "train/0030/vis,ni,th": ("v5_n9_s004_022.jpg",),
    "train/0451/vis,ni,th": ("v1_n1_s999_000.jpg", "v2_n1_s999_001.jpg"),
    "train/0865/vis": ("v1_n0_s999_001.jpg", "0865_vis_v1_n0_03.jpg"),
    "train/0865/ni": ("v1_n0_s999_001.jpg",),
    "train/0865/th": ("v1_n0_s999_001.jpg", "v1_n0_s999_002.jpg"),
    "test/0406/vis": ("v0_n0_s999_000.jpg",),
    "test/0406/ni": ("v0_n0_s999_000.jpg", "v1_n0_s999_004.jpg"),
    "test/0406/th": ("v0_n0_s999_000.jpg",),
    "test/0451/vis,ni,th": ("v1_n1_s999_000.jpg", "v3_n1_s999_002.jpg"),
    "test/0476/vis": ("v0_n0_s999_000.jpg", "v1_n0_s999_004.jpg"),
    "test/0476/ni,th": tuple(
        f"v{v}_n0_s999_{f}.jpg" for v, f in ((0, "000"), (0, "001"), (1, "002"), (1, "003"), (1, "004"))
    ),
    "test/0900/vis,ni,th": ("v6_n1_s999_000.jpg", "v6_n1_s999_001.jpg"),
}

MARKET = {
    "train": ("0002_c1s1_000451_03.jpg", "0002_c2s1_000776_01.jpg"),
    "query": ("0003_c1s6_015996_00.jpg",),
    "gallery": ("-1_c1s1_000401_03.jpg", "0000_c1s1_000151_01.jpg", "0003_c4s6_015641_02.jpg"),
}


def pixels(size: tuple[int, int] = (4, 8), seed: int = 0) -> np.ndarray:
    """A synthetic image of (width, height), (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def jpeg(folder: Path, size: tuple[int, int] = (4, 8)) -> Path:
    """A JPEG of (width, height) to link to."""
    path = folder / f"source_{size[0]}x{size[1]}.jpg"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(size)).save(path)
    return path


def link(folder: Path, names: Iterable[str], source: Path) -> None:
    """Fill a folder with links of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        os.link(source, folder / name)


def write_rgbnt201(home: Path, source: Path, train: Iterable[str], test: Iterable[str]) -> Path:
    for folder, names in (("train_171", list(train)), ("test", list(test))):
        for modality in ("RGB", "NI", "TI"):
            link(home / folder / modality, names, source)
    return home


def write_msvr310(home: Path, source: Path, train: Sequence[str], test: Sequence[str], query: Sequence[str]) -> Path:
    for folder, names in (("bounding_box_train", train), ("bounding_box_test", test), ("query3", query)):
        for pid in {name[:4] for name in names}:
            for modality in ("vis", "ni", "th"):
                link(home / folder / pid / modality, [n for n in names if n.startswith(pid)], source)
    return home


def write_side_by_side(
    home: Path, source: Path, train: Iterable[str], test: Iterable[str], query: Iterable[str] | None
) -> Path:
    """The tree of RGBNT100 and RGBN300; no folder ``query`` where it is None."""
    for folder, names in (("bounding_box_train", train), ("bounding_box_test", test), ("query", query)):
        if names is not None:
            link(home / "rgbir" / folder, names, source)
    return home


def write_wmveid863(home: Path, source: Path, tree: Mapping[str, Sequence[str]] | None = None) -> Path:
    """The tree of WMVEID863; keys of `tree` are split, identity and the modalities' folders."""
    for place, names in (WMVEID863 if tree is None else tree).items():
        split, identity, modalities = place.split("/")
        for modality in modalities.split(","):
            link(home / split / identity / modality, names, source)
    return home


def write_market(home: Path, source: Path, tree: Mapping[str, Sequence[str]] = MARKET) -> Path:
    for split, names in tree.items():
        for modality in ("RGB", "NI", "TI"):
            link(home / split / modality, names, source)
    return home


def rgbnt100_names() -> tuple[list[str], list[str], list[str]]:
    """Names of train, test and query with the published counts: 50 + 50 identities, 347 + 343 (identity, camera).

    Which identity is seen by which of the eight cameras is invented; the counts and the 25 frames of each are not.
    """

    def frames(identities: range, pairs: int) -> list[str]:
        more = pairs - 6 * len(identities)
        return [
            f"{pid:04d}_c{(pid + camera) % 8 + 1:04d}_{frame:03d}.jpg"
            for place, pid in enumerate(identities)
            for camera in range(7 if place < more else 6)
            for frame in range(25)
        ]

    train, test = frames(range(501, 600, 2), 347), frames(range(502, 601, 2), 343)
    return train, test, [name for name in test if int(name[11:14]) % 5 == 0]
