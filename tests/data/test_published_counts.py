"""Trees with all the published names, or as many as there are, and synthetic pixels: the published counts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trees

from nextreid.data import ReIDDataset, Sample, load_dataset, open_image, read_captions

Writer = Callable[..., Path]


def ids(samples: tuple[Sample, ...]) -> int:
    return len({sample.pid for sample in samples})


def cameras(samples: tuple[Sample, ...]) -> set[int]:
    return {sample.camid for sample in samples}


def counts(data: ReIDDataset) -> list[tuple[int, int, int]]:
    """Samples, identities and cameras of train, query and gallery."""
    return [(len(split), ids(split), len(cameras(split))) for split in (data.train, data.query, data.gallery)]


@pytest.mark.parametrize("source", ["NEXT", "IDEA"])
def test_rgbnt201_with_all_published_names(write_rgbnt201: Writer, published_captions: Path, source: str) -> None:
    text = published_captions / source / "RGBNT201"
    names = [list(read_captions(text / f"{split}_RGB.json")) for split in ("train", "test")]
    data = load_dataset("rgbnt201", write_rgbnt201(*names), captions=published_captions / source)
    assert (len(data.train), ids(data.train), len(cameras(data.train))) == (3951, 171, 4)
    for split in (data.query, data.gallery):
        assert (len(split), ids(split), len(cameras(split))) == (836, 30, 2)
    assert data.notes == ()
    captions = data.summary()
    assert captions["train"]["captions"] == {"rgb": 3951, "nir": 3951, "tir": 3951}
    by_name = read_captions(text / "test_NI.json")
    assert all(" ".join(s.captions[1]) == " ".join(by_name[s.key].split()) for s in data.query)


def test_msvr310_with_all_published_names(write_msvr310: Writer, published_captions: Path) -> None:
    text = published_captions / "NEXT" / "MSVR310"
    names = [list(read_captions(text / f"{split}_RGB.json")) for split in ("train", "test")]
    home = write_msvr310(*names, query=[])
    assert not (home / "query3").exists()
    data = load_dataset("msvr310", home, captions=text)
    counts = [(len(split), ids(split)) for split in (data.train, data.query, data.gallery)]
    assert counts == [(1032, 155), (591, 52), (1055, 155)]
    assert cameras(data.train) == cameras(data.query) == cameras(data.gallery) == set(range(8))
    assert len({s.sceneid for s in data.gallery}) == 30
    assert data.notes == ()


@pytest.mark.parametrize("query", [True, False])
def test_rgbnt100_with_as_many_names_as_published(tmp_path: Path, query: bool) -> None:
    train, test, published = trees.rgbnt100_names()
    source = trees.jpeg(tmp_path, (768, 128))
    trees.write_side_by_side(tmp_path / "RGBNT100", source, train, test, published if query else None)
    data = load_dataset("rgbnt100", tmp_path)
    assert counts(data) == [(8675, 50, 8), (1715, 50, 8), (8575, 50, 8)]
    assert [s.key for s in data.query] == sorted(published)
    rebuilt = "query: no folder query, rebuilt by its rule, every fifth frame: 1715 samples"
    assert data.notes == (() if query else (rebuilt,))
    assert [open_image(image).size for image in data.train[0].images] == [(256, 128)] * 3
