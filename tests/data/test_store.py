import errno
import logging
import os
import pickle
import resource
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from nextreid.data import (
    Batch,
    EvalTransform,
    PictureFile,
    PictureStore,
    PKSampler,
    Sample,
    TrainTransform,
    keyed_rng,
    make_loader,
    pictures,
    store,
)

SIZE = (16, 8)
NAMES = ("rgb", "nir", "tir")
TRANSFORM = EvalTransform(SIZE)


def pixels(seed: int, size: tuple[int, int] = (20, 14)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Six samples: JPEG, PNG of 16 bits, parts of one file, arrays, missing pictures, one picture twice."""
    for i in range(3):
        Image.fromarray(pixels(i)).save(tmp_path / f"{i}.jpg")
        Image.fromarray(pixels(9 + i)[:, :, 0].astype(np.uint16) * 200).save(tmp_path / f"{i}.png")
    Image.fromarray(pixels(20, (20, 42))).save(tmp_path / "three.png")
    whole = [PictureFile(tmp_path / "three.png", (14 * i, 0, 14 * i + 14, 20), (42, 20)) for i in range(3)]
    warm = [PictureFile(tmp_path / f"{i}.png", window=(0, 40000)) for i in range(3)]
    return [
        Sample("a", 0, 0, -1, (tmp_path / "0.jpg", pixels(30), warm[0])),
        Sample("b", 0, 1, -1, (tmp_path / "1.jpg", None, warm[1])),
        Sample("c", 1, 0, -1, tuple(whole)),
        Sample("d", 1, 1, -1, (tmp_path / "2.jpg", pixels(31)[:, :, 1], None)),
        Sample(
            "e", 2, 0, -1, (PictureFile(tmp_path / "0.jpg"), pixels(30), PictureFile(warm[0].path, window="minmax"))
        ),
        Sample("f", 2, 1, -1, (None, None, warm[2])),
    ]


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise AssertionError(f"decoded {path}")

    monkeypatch.setattr(pictures, "_decode", refuse)


def same(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) > 0 and all(
        a.images.numpy().tobytes() == b.images.numpy().tobytes() and torch.equal(a.present, b.present)
        for a, b in zip(one, two, strict=True)
    )


def spy(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    decoded: list[Path] = []
    real = pictures._decode
    monkeypatch.setattr(pictures, "_decode", lambda path: decoded.append(path) or real(path))
    return decoded


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kept", ["memory", "file"])
def test_batches_are_those_of_decoding_afresh(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str, workers: int
) -> None:
    train = TrainTransform(SIZE, (0.4, 0.5, 0.45), 0.3, pad=3)
    sampler = PKSampler([s.pid for s in samples], 3, 2, seed=1)
    sampler.set_epoch(2)
    afresh = list(make_loader(samples, train, sampler=sampler, seed=4))
    plain = list(make_loader(samples, TRANSFORM, batch_size=4))
    decoded = spy(monkeypatch)
    file = tmp_path / "pictures.store" if kept == "file" else None
    built = PictureStore.build(samples, NAMES, train, file=file)
    count = len(decoded)
    assert same(list(make_loader(samples, train, sampler=sampler, seed=4, store=built, workers=workers)), afresh)
    assert same(list(make_loader(samples, TRANSFORM, batch_size=4, store=built, workers=workers)), plain)
    assert len(decoded) == count
    assert built.path == file and not any(name.name.endswith(".tmp") for name in tmp_path.iterdir())


def test_every_distinct_picture_is_kept_once(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = spy(monkeypatch)
    built = PictureStore.build([*samples, *samples[::-1]], NAMES, TRANSFORM)
    names = sorted(path.name for path in decoded)
    # three parts of a file are decoded at once; a file read through two windows is two pictures
    assert names == ["0.jpg", "0.png", "0.png", "1.jpg", "1.png", "2.jpg", "2.png", "three.png"]
    assert len(built) == 12 and built.pixels.shape == (12, 3, *SIZE) and built.pixels.dtype == np.uint8
    rows = built.rows(samples, NAMES)
    assert rows[0, 0] == rows[4, 0] and rows[0, 1] == rows[4, 1] and rows[0, 2] != rows[4, 2]
    assert (rows >= 0).tolist() == [[image is not None for image in s.images] for s in samples]
    assert len(set(rows[rows >= 0])) == 12
    copied = Sample("other", 0, 0, -1, (None, pixels(30).copy(), None))
    assert built.rows([copied], NAMES).tolist() == [[-1, rows[0, 1], -1]]


def test_rows_are_the_resized_pictures_and_missing_ones_are_black(samples: list[Sample]) -> None:
    built = PictureStore.build(samples, NAMES, EvalTransform(SIZE, interpolation="nearest"))
    rows = built.rows(samples[:2], NAMES)
    out = np.full((2, 3, 3, *SIZE), 7, dtype=np.uint8)
    built.take(rows, out)
    picture = Image.fromarray(pixels(30)).resize(SIZE[::-1], Image.Resampling.NEAREST)
    assert np.array_equal(out[0, 1], np.asarray(picture).transpose(2, 0, 1))
    assert not out[1, 1].any() and out[1, 0].any()


@given(st.integers(0, 10**6), st.integers(0, 12), st.sampled_from(["shared", "independent"]))
def test_a_transform_does_to_pixels_what_it_does_to_pictures(key: int, pad: int, geometry: str) -> None:
    given = [Image.fromarray(pixels(key)), None, Image.fromarray(pixels(key + 1))]
    transform = TrainTransform(SIZE, 0.3, 0.7, pad=pad, geometry=geometry)
    stored = [None if picture is None else np.ascontiguousarray(transform.pixels(picture)) for picture in given]
    before = [None if picture is None else picture.copy() for picture in stored]
    assert torch.equal(transform(given, keyed_rng(key)), transform(stored, keyed_rng(key)))
    assert all(a is b is None or np.array_equal(a, b) for a, b in zip(stored, before, strict=True))


def test_the_bytes_are_told_before_and_a_budget_is_kept(
    samples: list[Sample], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, no_decoding: None
) -> None:
    needed = 12 * 3 * SIZE[0] * SIZE[1]
    with pytest.raises(ValueError, match=f"12 pictures of 16 x 8 pixels take {needed} bytes.*max_bytes={needed - 1}"):
        PictureStore.build(samples, NAMES, TRANSFORM, max_bytes=needed - 1)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: type("U", (), {"free": 100}))
    with pytest.raises(ValueError, match=r"take 4608 bytes.*100 bytes.*--shm-size.*\.store"):
        PictureStore.build(samples, NAMES, TRANSFORM)
    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        PictureStore.build(samples, NAMES, TRANSFORM, max_bytes=needed)
    assert "in memory: 12 pictures of 16 x 8 pixels take 4608 bytes" in caplog.text


def test_a_file_is_read_and_not_made_again(
    samples: list[Sample], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "deep" / "pictures.store"
    first = PictureStore.build(samples, NAMES, TRANSFORM, file=path)
    stamp = path.stat().st_mtime_ns
    request.getfixturevalue("no_decoding")
    again = PictureStore.build(samples, NAMES, TrainTransform(SIZE, 0.1), file=str(path))
    assert np.array_equal(again.pixels, first.pixels) and path.stat().st_mtime_ns == stamp
    with safe_open(path, framework="np") as file:
        assert np.array_equal(file.get_tensor("pixels"), first.pixels)


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "pixels are damaged": lambda path: flip_byte(path, -1),
    "header is damaged": lambda path: flip_byte(path, 8),
    "header is damaged ": lambda path: path.write_bytes(b""),
    "header is damaged  ": lambda path: path.write_bytes(b"\xff" * 100),
    "bytes of": lambda path: os.truncate(path, path.stat().st_size - 5),
    "bytes of ": lambda path: path.open("ab").write(b"1"),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_file_is_named_and_made_anew(
    samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    path = tmp_path / "pictures.store"
    PictureStore.build(samples, NAMES, TRANSFORM, file=path)
    whole = path.read_bytes()
    DAMAGE[reason](path)
    assert path.read_bytes() != whole
    PictureStore.build(samples, NAMES, TRANSFORM, file=path)
    assert path.read_bytes() == whole
    (told,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(path) in told.message and reason.strip() in told.message


def test_a_file_of_something_else_is_made_anew(
    samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, picture = tmp_path / "pictures.store", tmp_path / "0.jpg"

    def told(given: list[Sample], transform: EvalTransform = TRANSFORM) -> str:
        caplog.clear()
        built = PictureStore.build(given, NAMES, transform, file=path)
        fresh = PictureStore.build(given, NAMES, transform)
        assert np.array_equal(built.pixels, fresh.pixels)
        return " ".join(record.message for record in caplog.records if record.levelno == logging.WARNING)

    assert told(samples) == ""
    assert "with other pictures:" in told(samples[:-1])
    assert "with other img_size:" in told(samples[:-1], EvalTransform((8, 8)))
    assert "with other interpolation:" in told(samples[:-1], EvalTransform((8, 8), interpolation="bilinear"))
    assert "with other img_size, interpolation, resize:" in told(samples[:-1], EvalTransform(SIZE, resize="torch"))
    assert "with other resize:" in told(samples[:-1])
    os.utime(picture, ns=(0, picture.stat().st_mtime_ns + 1))
    assert "with other pictures:" in told(samples[:-1])
    stamp = picture.stat().st_mtime_ns
    picture.write_bytes(picture.read_bytes() + b"0")
    os.utime(picture, ns=(stamp, stamp))
    assert "with other pictures:" in told(samples[:-1])
    assert told(samples[:-1]) == ""
    monkeypatch.setattr(store, "__version__", "0.0")
    assert "with other nextreid:" in told(samples[:-1])
    monkeypatch.setattr(store.PIL, "__version__", "0.0")
    assert "with other pillow:" in told(samples[:-1])


def test_a_full_disk_leaves_what_was_there(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pictures.store"
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))  # the header fits, not all pictures
    try:
        with pytest.raises(
            OSError, match=r"cannot write the picture store .*pictures\.store, 12 pictures .* take 4608"
        ):
            PictureStore.build(samples, NAMES, TRANSFORM, file=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.iterdir()) == before
    PictureStore.build(samples, NAMES, TRANSFORM, file=path)
    whole = path.read_bytes()
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: type("U", (), {"free": 5000}))
    with pytest.raises(OSError, match="the disk has 5000 bytes") as refused:
        PictureStore.build(samples[:-1], NAMES, TRANSFORM, file=path)
    assert refused.value.errno == errno.ENOSPC
    assert path.read_bytes() == whole and len(list(tmp_path.iterdir())) == len(before) + 1


@pytest.mark.parametrize("content", [None, b"no picture"])
@pytest.mark.parametrize("kept", ["memory", "file"])
def test_a_bad_picture_is_named_and_nothing_is_written(
    samples: list[Sample], tmp_path: Path, kept: str, content: bytes | None
) -> None:
    bad, path = tmp_path / "bad.jpg", tmp_path / "pictures.store"
    if content is not None:
        bad.write_bytes(content)
    broken = [*samples, Sample("the-key", 0, 0, -1, (None, bad, None))]
    with pytest.raises(ValueError, match=r"bad\.jpg, the nir picture of sample 'the-key'"):
        PictureStore.build(broken, NAMES, TRANSFORM, file=path if kept == "file" else None)
    assert not [name for name in tmp_path.iterdir() if ".store" in name.name]


def test_what_cannot_be_is_refused(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.store, got .*train\.json"):
        PictureStore.build(samples, NAMES, TRANSFORM, file=tmp_path / "train.json")
    (tmp_path / "folder.store").mkdir()
    with pytest.raises(ValueError, match=r"folder\.store"):
        PictureStore.build(samples, NAMES, TRANSFORM, file=tmp_path / "folder.store")
    with pytest.raises(ValueError, match="no picture"):
        PictureStore.build([Sample("a", 0, 0, -1, (None,))], ("rgb",), TRANSFORM)
    with pytest.raises(ValueError, match="sample 'a' has 3 images"):
        PictureStore.build(samples, NAMES[:2], TRANSFORM)
    built = PictureStore.build(samples[:2], NAMES, TRANSFORM)
    with pytest.raises(KeyError, match="rgb picture of sample 'c'"):
        make_loader(samples, TRANSFORM, batch_size=2, store=built)
    for other in (
        EvalTransform((8, 8)),
        EvalTransform(SIZE, interpolation="nearest"),
        EvalTransform(SIZE, resize="torch"),
    ):
        with pytest.raises(ValueError, match=r"holds pictures of \(\(16, 8\), 'bicubic', 'pillow'\)"):
            make_loader(samples[:2], other, batch_size=2, store=built)
    with pytest.raises(ValueError, match="EvalTransform or TrainTransform, got function"):
        make_loader(samples[:2], lambda given, rng: torch.zeros(3, 3, *SIZE), batch_size=2, store=built)


def test_pickling_copies_no_pixels(tmp_path: Path) -> None:
    large = [Sample(str(i), 0, 0, -1, (pixels(i),)) for i in range(40)]
    transform = EvalTransform((64, 32))
    kept = PictureStore.build(large, ("rgb",), transform, file=tmp_path / "a.store")
    sent = pickle.dumps(kept)
    assert len(sent) < kept.pixels.nbytes / 10
    assert np.array_equal(pickle.loads(sent).pixels, kept.pixels)
    inside = PictureStore.build(large, ("rgb",), transform)
    sent = ForkingPickler.dumps(inside)
    assert len(sent) < inside.pixels.nbytes / 10
    there = pickle.loads(sent)
    inside.pixels[3, 2, 1, 0] += 1
    assert np.array_equal(there.pixels, inside.pixels)


@pytest.mark.slow
def test_a_spawned_worker_reads_the_same(tmp_path: Path) -> None:
    given = [Sample(str(i), 0, 0, -1, (pixels(i),)) for i in range(6)]
    expected = list(make_loader(given, TRANSFORM, ("rgb",), batch_size=4))
    built = PictureStore.build(given, ("rgb",), TRANSFORM)
    loader = make_loader(given, TRANSFORM, ("rgb",), batch_size=4, workers=1, store=built)
    loader.multiprocessing_context = "spawn"
    assert same(list(loader), expected)
