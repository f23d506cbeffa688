"""Published folder trees with real-form names and synthetic pixels."""

import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image

# makes `trees` importable from here and from the tests beside it
sys.path.append(str(Path(__file__).parent))

import trees

# the machine may be busy: how long one example takes says nothing
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

Writer = Callable[..., Path]


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    return trees.jpeg(tmp_path)


@pytest.fixture
def write_rgbnt201(tmp_path: Path, jpeg: Path) -> Writer:
    def write(train: Iterable[str] = trees.RGBNT201_TRAIN, test: Iterable[str] = trees.RGBNT201_TEST) -> Path:
        return trees.write_rgbnt201(tmp_path / "RGBNT201", jpeg, train, test)

    return write


@pytest.fixture
def write_msvr310(tmp_path: Path, jpeg: Path) -> Writer:
    def write(
        train: Sequence[str] = trees.MSVR310_TRAIN,
        test: Sequence[str] = trees.MSVR310_TEST,
        query: Sequence[str] | None = None,
    ) -> Path:
        if query is None:
            query = [name for name in test if name.startswith("0030")]
        return trees.write_msvr310(tmp_path / "MSVR310", jpeg, train, test, query)

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
    Image.fromarray(trees.pixels()).save(buffer, "JPEG")
    return buffer.getvalue()
