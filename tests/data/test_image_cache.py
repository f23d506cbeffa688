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
    ImageCache,
    ImageFile,
    PKSampler,
    Sample,
    TrainTransform,
    image,
    image_cache,
    make_loader,
    seeded_rng,
)

SIZE = (16, 8)
NAMES = ("rgb", "nir", "tir")
TRANSFORM = EvalTransform(SIZE)


def pixels(seed: int, size: tuple[int, int] = (20, 14)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Six samples: JPEG, PNG of 16 bits, parts of one file, arrays, missing images, one image twice."""
    for i in range(3):
        Image.fromarray(pixels(i)).save(tmp_path / f"{i}.jpg")
        Image.fromarray(pixels(9 + i)[:, :, 0].astype(np.uint16) * 200).save(tmp_path / f"{i}.png")
    Image.fromarray(pixels(20, (20, 42))).save(tmp_path / "three.png")
    whole = [ImageFile(tmp_path / "three.png", (14 * i, 0, 14 * i + 14, 20), (42, 20)) for i in range(3)]
    warm = [ImageFile(tmp_path / f"{i}.png", window=(0, 40000)) for i in range(3)]
    return [
        Sample("a", 0, 0, -1, (tmp_path / "0.jpg", pixels(30), warm[0])),
        Sample("b", 0, 1, -1, (tmp_path / "1.jpg", None, warm[1])),
        Sample("c", 1, 0, -1, tuple(whole)),
        Sample("d", 1, 1, -1, (tmp_path / "2.jpg", pixels(31)[:, :, 1], None)),
        Sample("e", 2, 0, -1, (ImageFile(tmp_path / "0.jpg"), pixels(30), ImageFile(warm[0].path, window="minmax"))),
        Sample("f", 2, 1, -1, (None, None, warm[2])),
    ]


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise AssertionError(f"decoded {path}")

    monkeypatch.setattr(image, "_decode", fail)


def same(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) > 0 and all(
        a.images.numpy().tobytes() == b.images.numpy().tobytes() and torch.equal(a.present, b.present)
        for a, b in zip(one, two, strict=True)
    )


def spy(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    decoded: list[Path] = []
    real = image._decode
    monkeypatch.setattr(image, "_decode", lambda path: decoded.append(path) or real(path))
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
    file = tmp_path / "images.store" if kept == "file" else None
    built = ImageCache.build(samples, NAMES, train, file=file)
    count = len(decoded)
    assert same(list(make_loader(samples, train, sampler=sampler, seed=4, store=built, workers=workers)), afresh)
    assert same(list(make_loader(samples, TRANSFORM, batch_size=4, store=built, workers=workers)), plain)
    assert len(decoded) == count
    assert built.path == file and not any(name.name.endswith(".tmp") for name in tmp_path.iterdir())


def test_every_distinct_image_is_kept_once(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = spy(monkeypatch)
    built = ImageCache.build([*samples, *samples[::-1]], NAMES, TRANSFORM)
    names = sorted(path.name for path in decoded)
    # three parts of a file are decoded at once; a file read through two windows is two images
    assert names == ["0.jpg", "0.png", "0.png", "1.jpg", "1.png", "2.jpg", "2.png", "three.png"]
    assert len(built) == 12 and built.pixels.shape == (12, 3, *SIZE) and built.pixels.dtype == np.uint8
    rows = built.rows(samples, NAMES)
    assert rows[0, 0] == rows[4, 0] and rows[0, 1] == rows[4, 1] and rows[0, 2] != rows[4, 2]
    assert (rows >= 0).tolist() == [[image is not None for image in s.images] for s in samples]
    assert len(set(rows[rows >= 0])) == 12
    copied = Sample("other", 0, 0, -1, (None, pixels(30).copy(), None))
    assert built.rows([copied], NAMES).tolist() == [[-1, rows[0, 1], -1]]


def test_rows_are_the_resized_images_and_missing_ones_are_black(samples: list[Sample]) -> None:
    built = ImageCache.build(samples, NAMES, EvalTransform(SIZE, interpolation="nearest"))
    rows = built.rows(samples[:2], NAMES)
    out = np.full((2, 3, 3, *SIZE), 7, dtype=np.uint8)
    built.take(rows, out)
    image = Image.fromarray(pixels(30)).resize(SIZE[::-1], Image.Resampling.NEAREST)
    assert np.array_equal(out[0, 1], np.asarray(image).transpose(2, 0, 1))
    assert not out[1, 1].any() and out[1, 0].any()


@given(st.integers(0, 10**6), st.integers(0, 12), st.sampled_from(["shared", "independent"]))
def test_a_transform_does_to_pixels_what_it_does_to_images(key: int, pad: int, geometry: str) -> None:
    given = [Image.fromarray(pixels(key)), None, Image.fromarray(pixels(key + 1))]
    transform = TrainTransform(SIZE, 0.3, 0.7, pad=pad, geometry=geometry)
    stored = [None if image is None else np.ascontiguousarray(transform.pixels(image)) for image in given]
    before = [None if image is None else image.copy() for image in stored]
    assert torch.equal(transform(given, seeded_rng(key)), transform(stored, seeded_rng(key)))
    assert all(a is b is None or np.array_equal(a, b) for a, b in zip(stored, before, strict=True))


def test_the_size_is_logged_first_and_a_limit_is_kept(
    samples: list[Sample], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, no_decoding: None
) -> None:
    needed = 12 * 3 * SIZE[0] * SIZE[1]
    with pytest.raises(ValueError, match=f"12 images of 16 x 8 pixels take {needed} bytes.*max_bytes={needed - 1}"):
        ImageCache.build(samples, NAMES, TRANSFORM, max_bytes=needed - 1)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: type("U", (), {"free": 100}))
    with pytest.raises(ValueError, match=r"take 4608 bytes.*100 bytes.*--shm-size.*\.store"):
        ImageCache.build(samples, NAMES, TRANSFORM)
    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        ImageCache.build(samples, NAMES, TRANSFORM, max_bytes=needed)
    assert "in memory: 12 images of 16 x 8 pixels take 4608 bytes" in caplog.text


def test_a_file_is_read_and_not_rebuilt(samples: list[Sample], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "deep" / "images.store"
    first = ImageCache.build(samples, NAMES, TRANSFORM, file=path)
    stamp = path.stat().st_mtime_ns
    request.getfixturevalue("no_decoding")
    again = ImageCache.build(samples, NAMES, TrainTransform(SIZE, 0.1), file=str(path))
    assert np.array_equal(again.pixels, first.pixels) and path.stat().st_mtime_ns == stamp
    with safe_open(path, framework="np") as file:
        assert np.array_equal(file.get_tensor("pixels"), first.pixels)


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "digest is not that": lambda path: flip_byte(path, -1),
    "is damaged": lambda path: flip_byte(path, 8),
    "header would take": lambda path: path.write_bytes(b""),
    "header would take ": lambda path: path.write_bytes(b"\xff" * 100),
    "bytes of": lambda path: os.truncate(path, path.stat().st_size - 5),
    "bytes of ": lambda path: path.open("ab").write(b"1"),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_file_is_named_and_rebuilt(
    samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    path = tmp_path / "images.store"
    ImageCache.build(samples, NAMES, TRANSFORM, file=path)
    whole = path.read_bytes()
    DAMAGE[reason](path)
    assert path.read_bytes() != whole
    ImageCache.build(samples, NAMES, TRANSFORM, file=path)
    assert path.read_bytes() == whole
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(path) in warning.message and reason.strip() in warning.message


def test_a_file_of_something_else_is_rebuilt(
    samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, image = tmp_path / "images.store", tmp_path / "0.jpg"

    def warnings_of(given: list[Sample], transform: EvalTransform = TRANSFORM) -> str:
        caplog.clear()
        built = ImageCache.build(given, NAMES, transform, file=path)
        fresh = ImageCache.build(given, NAMES, transform)
        assert np.array_equal(built.pixels, fresh.pixels)
        return " ".join(record.message for record in caplog.records if record.levelno == logging.WARNING)

    assert warnings_of(samples) == ""
    assert "with other images:" in warnings_of(samples[:-1])
    assert "with other img_size:" in warnings_of(samples[:-1], EvalTransform((8, 8)))
    assert "with other interpolation:" in warnings_of(samples[:-1], EvalTransform((8, 8), interpolation="bilinear"))
    assert "with other img_size, interpolation, resize:" in warnings_of(
        samples[:-1], EvalTransform(SIZE, resize="torch")
    )
    assert "with other resize:" in warnings_of(samples[:-1])
    os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))
    assert "with other images:" in warnings_of(samples[:-1])
    stamp = image.stat().st_mtime_ns
    image.write_bytes(image.read_bytes() + b"0")
    os.utime(image, ns=(stamp, stamp))
    assert "with other images:" in warnings_of(samples[:-1])
    assert warnings_of(samples[:-1]) == ""
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    os.utime(image, ns=(stamp, stamp))  # the same length and time, as cp -p and tar leave them
    assert "with other images:" in warnings_of(samples[:-1])
    monkeypatch.setattr(image_cache, "__version__", "0.0")
    assert "with other nextreid:" in warnings_of(samples[:-1])
    monkeypatch.setattr(image_cache.PIL, "__version__", "0.0")
    assert "with other pillow:" in warnings_of(samples[:-1])


def test_a_full_disk_leaves_what_was_there(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "images.store"
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))  # the header fits, not all images
    try:
        with pytest.raises(OSError, match=r"cannot write the image cache .*images\.store, 12 images .* take 4608"):
            ImageCache.build(samples, NAMES, TRANSFORM, file=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.iterdir()) == before
    ImageCache.build(samples, NAMES, TRANSFORM, file=path)
    whole = path.read_bytes()
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: type("U", (), {"free": 5000}))
    with pytest.raises(OSError, match="the disk has 5000 bytes") as rejected:
        ImageCache.build(samples[:-1], NAMES, TRANSFORM, file=path)
    assert rejected.value.errno == errno.ENOSPC
    assert path.read_bytes() == whole and len(list(tmp_path.iterdir())) == len(before) + 1


@pytest.mark.parametrize("content", [None, b"no image"])
@pytest.mark.parametrize("kept", ["memory", "file"])
def test_a_bad_image_is_named_and_nothing_is_written(
    samples: list[Sample], tmp_path: Path, kept: str, content: bytes | None
) -> None:
    bad, path = tmp_path / "bad.jpg", tmp_path / "images.store"
    if content is not None:
        bad.write_bytes(content)
    broken = [*samples, Sample("the-key", 0, 0, -1, (None, bad, None))]
    with pytest.raises(ValueError, match=r"bad\.jpg, the nir image of sample 'the-key'"):
        ImageCache.build(broken, NAMES, TRANSFORM, file=path if kept == "file" else None)
    assert not [name for name in tmp_path.iterdir() if ".store" in name.name]


def test_bad_arguments_are_rejected(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.store, got .*train\.json"):
        ImageCache.build(samples, NAMES, TRANSFORM, file=tmp_path / "train.json")
    (tmp_path / "folder.store").mkdir()
    with pytest.raises(ValueError, match=r"folder\.store"):
        ImageCache.build(samples, NAMES, TRANSFORM, file=tmp_path / "folder.store")
    with pytest.raises(ValueError, match="no image"):
        ImageCache.build([Sample("a", 0, 0, -1, (None,))], ("rgb",), TRANSFORM)
    with pytest.raises(ValueError, match="sample 'a' has 3 images"):
        ImageCache.build(samples, NAMES[:2], TRANSFORM)
    built = ImageCache.build(samples[:2], NAMES, TRANSFORM)
    with pytest.raises(KeyError, match="rgb image of sample 'c'"):
        make_loader(samples, TRANSFORM, batch_size=2, store=built)
    for other in (
        EvalTransform((8, 8)),
        EvalTransform(SIZE, interpolation="nearest"),
        EvalTransform(SIZE, resize="torch"),
    ):
        with pytest.raises(ValueError, match=r"holds images of \(\(16, 8\), 'bicubic', 'pillow'\)"):
            make_loader(samples[:2], other, batch_size=2, store=built)
    with pytest.raises(ValueError, match="EvalTransform or TrainTransform, got function"):
        make_loader(samples[:2], lambda given, rng: torch.zeros(3, 3, *SIZE), batch_size=2, store=built)


def test_pickling_copies_no_pixels(tmp_path: Path) -> None:
    large = [Sample(str(i), 0, 0, -1, (pixels(i),)) for i in range(40)]
    transform = EvalTransform((64, 32))
    kept = ImageCache.build(large, ("rgb",), transform, file=tmp_path / "a.store")
    sent = pickle.dumps(kept)
    assert len(sent) < kept.pixels.nbytes / 10
    assert np.array_equal(pickle.loads(sent).pixels, kept.pixels)
    inside = ImageCache.build(large, ("rgb",), transform)
    sent = ForkingPickler.dumps(inside)
    assert len(sent) < inside.pixels.nbytes / 10
    there = pickle.loads(sent)
    inside.pixels[3, 2, 1, 0] += 1
    assert np.array_equal(there.pixels, inside.pixels)


@pytest.mark.slow
def test_a_spawned_worker_reads_the_same(tmp_path: Path) -> None:
    given = [Sample(str(i), 0, 0, -1, (pixels(i),)) for i in range(6)]
    expected = list(make_loader(given, TRANSFORM, ("rgb",), batch_size=4))
    built = ImageCache.build(given, ("rgb",), TRANSFORM)
    loader = make_loader(given, TRANSFORM, ("rgb",), batch_size=4, workers=1, store=built)
    loader.multiprocessing_context = "spawn"
    assert same(list(loader), expected)
