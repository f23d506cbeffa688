"""Published folder trees with real-form names and made-up pixels."""

import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# the machine may be busy: how long one example takes says nothing
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

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

Writer = Callable[..., Path]


def picture(seed: int = 0, size: tuple[int, int] = (4, 8)) -> np.ndarray:
    """A made-up picture, (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def _fill(folder: Path, names: Iterable[str], source: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        os.link(source, folder / name)


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    path = tmp_path / "source.jpg"
    Image.fromarray(picture()).save(path)
    return path


@pytest.fixture
def write_rgbnt201(tmp_path: Path, jpeg: Path) -> Writer:
    def write(train: Sequence[str] = RGBNT201_TRAIN, test: Sequence[str] = RGBNT201_TEST) -> Path:
        home = tmp_path / "RGBNT201"
        for folder, names in (("train_171", train), ("test", test)):
            for modality in ("RGB", "NI", "TI"):
                _fill(home / folder / modality, names, jpeg)
        return home

    return write


@pytest.fixture
def write_msvr310(tmp_path: Path, jpeg: Path) -> Writer:
    def write(
        train: Sequence[str] = MSVR310_TRAIN, test: Sequence[str] = MSVR310_TEST, query: Sequence[str] | None = None
    ) -> Path:
        home = tmp_path / "MSVR310"
        if query is None:
            query = [name for name in test if name.startswith("0030")]
        for folder, names in (("bounding_box_train", train), ("bounding_box_test", test), ("query3", query)):
            for pid in {name[:4] for name in names}:
                for modality in ("vis", "ni", "th"):
                    _fill(home / folder / pid / modality, [n for n in names if n.startswith(pid)], jpeg)
        return home

    return write


@pytest.fixture
def write_captions(tmp_path: Path) -> Writer:
    def write(train: Iterable[str], test: Iterable[str], text: str = "A man. He carries a bag.") -> Path:
        home = tmp_path / "text"
        home.mkdir()
        for split, names in (("train", list(train)), ("test", list(test))):
            for modality in ("RGB", "NI", "TI"):
                entries = [{"item": name, "description": f"In {modality}. {text}"} for name in names]
                (home / f"{split}_{modality}.json").write_text(json.dumps(entries), encoding="utf-8")
        return home

    return write


@pytest.fixture
def jpeg_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def published_captions() -> Path:
    """Folder with NEXT/{RGBNT201,MSVR310} and IDEA/RGBNT201; the tests that need it skip where it is absent."""
    named = os.environ.get("NEXTREID_CAPTIONS")
    home = Path(named) if named else Path(__file__).parents[3] / "shared" / "captions"
    if not (home / "NEXT" / "RGBNT201").is_dir():
        pytest.skip(f"no published captions in {home}: set NEXTREID_CAPTIONS to the folder that holds NEXT and IDEA")
    return home
