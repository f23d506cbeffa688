import io
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextreid.data import (
    EvalTransform,
    ImageFile,
    ReIDDataset,
    Sample,
    SampleDataset,
    drop_unreadable,
    image_path,
    open_image,
)
from nextreid.data import image as module
from nextreid.data.image import ImageError, is_sidecar, open_images

RAW = np.array([[0, 6999, 7000, 7001], [7500, 8000, 8999, 9000], [9001, 20000, 65535, 7777]])


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    Image.fromarray(values).save(path, **options)
    return path


def deep_colour(path: Path) -> Path:
    """A PNG with 16 bits in each of three channels, which Pillow can read but not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(4 * 6) for _ in range(3))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.png", np.uint16), ("a.tif", np.uint16), ("a.tif", np.int32), ("a.tif", np.float32)]
)
@pytest.mark.parametrize("window", [(7000, 9000), (0, 65535), (-10.5, 70000.25), "minmax"])
def test_windows_map_raw_values_one_by_one(tmp_path: Path, name: str, dtype: type, window: object) -> None:
    path = save(tmp_path / name, RAW.astype(dtype))
    low, high = (RAW.min(), RAW.max()) if window == "minmax" else window
    expected = [[round((min(max(v, low), high) - low) / (high - low) * 255) for v in row] for row in RAW.tolist()]
    image = open_image(ImageFile(path, window=window))
    assert image.mode == "L" and np.asarray(image).tolist() == expected
    # the window belongs to the part that is shown
    part = open_image(ImageFile(path, box=(1, 0, 4, 2), window=window))
    if window != "minmax":
        assert np.asarray(part).tolist() == [row[1:] for row in expected[:2]]
    else:
        assert (np.asarray(part).min(), np.asarray(part).max()) == (0, 255)


def test_a_flat_image_is_black_and_eight_bits_stay(tmp_path: Path) -> None:
    flat = save(tmp_path / "flat.png", np.full((3, 4), 500, np.uint16))
    assert not np.asarray(open_image(ImageFile(flat, window="minmax"))).any()
    plain = np.arange(12, dtype=np.uint8).reshape(3, 4)
    small = save(tmp_path / "small.png", plain)
    assert np.array_equal(open_image(ImageFile(small, window=(3, 5))), plain)


@pytest.mark.parametrize("window", [(5, 5), (9, 2), (1,), "max", ("1", "2"), 7])
def test_wrong_windows_and_boxes_are_rejected(window: object) -> None:
    with pytest.raises(ValueError, match='window must be "minmax" or two raw values'):
        ImageFile(Path("a.png"), window=window)
    for box in ((0, 0, 0, 5), (4, 0, 2, 5), (-1, 0, 2, 5)):
        with pytest.raises(ValueError, match="box must be"):
            ImageFile(Path("a.png"), box=box)


def test_bad_images_name_file_sample_and_modality(tmp_path: Path, jpeg_bytes: bytes, monkeypatch) -> None:
    (tmp_path / "cut.jpg").write_bytes(jpeg_bytes[:-40])
    (tmp_path / "text.jpg").write_bytes(b"no image")
    deep = save(tmp_path / "deep.png", RAW.astype(np.uint16))
    holes = save(tmp_path / "holes.tif", np.array([[1.0, np.nan]], np.float32))
    big = save(tmp_path / "big.png", np.zeros((10, 21), np.uint8))
    cases = {
        tmp_path / "none.jpg": "No such file",
        tmp_path / "cut.jpg": "truncated",
        tmp_path / "text.jpg": "cannot identify",
        deep: "more than 8 bits.*window=",
        deep_colour(tmp_path / "colour.png"): "16 bits in each of several channels",
        ImageFile(deep_colour(tmp_path / "colour.png"), window="minmax"): "16 bits in each of several channels",
        ImageFile(holes, window="minmax"): "not finite",
        ImageFile(big, size=(768, 128)): "must be 768 x 128 pixels wide and high, found 21 x 10",
        ImageFile(big, box=(0, 0, 22, 10)): r"part \(0, 0, 22, 10\) is not inside its 21 x 10",
        big: "21 x 10 pixels are more than the limit of 209",
    }
    for image, message in cases.items():
        monkeypatch.setattr(module, "MAX_PIXELS", 209 if image == big else 2**26)
        with pytest.raises(ValueError, match=message) as error:
            SampleDataset([Sample("the-key", 0, 0, -1, (None, image))], EvalTransform((8, 4)), ("rgb", "tir"))[0]
        assert f"cannot read {image_path(image)}, the tir image of sample 'the-key': " in str(error.value)
    monkeypatch.setattr(module, "MAX_PIXELS", 210)
    assert open_image(big).size == (21, 10)


def test_images_are_turned_as_the_camera_was_held(tmp_path: Path) -> None:
    values = np.zeros((2, 6, 3), np.uint8)
    values[0, 0] = 255
    turn = Image.Exif()
    turn[0x0112] = 6  # to be shown a quarter turn clockwise
    image = Image.fromarray(values)
    image.save(tmp_path / "a.png", exif=turn)
    shown = np.asarray(open_image(ImageFile(tmp_path / "a.png", size=(2, 6))))
    assert shown.shape == (6, 2, 3) and shown[0, 1, 0] == 255 and shown.sum() == 3 * 255


def test_a_file_of_several_images_is_decoded_once(tmp_path: Path, monkeypatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 12, 3), dtype=np.uint8)
    path = save(tmp_path / "strip.png", values)
    strip = [ImageFile(path, (x, 0, x + 4, 4), (12, 4)) for x in (8, 0, 4)]
    opened = []
    decode = module._decode
    monkeypatch.setattr(module, "_decode", lambda path: opened.append(path) or decode(path))
    found = open_images([*strip, None, path], "key", ("c", "a", "b", "d", "e"))
    assert opened == [path] and found[3] is None
    for image, x in zip(found, (8, 0, 4), strict=False):
        assert np.array_equal(image, values[:, x : x + 4])
    assert np.array_equal(found[4], values)


@pytest.fixture
def faulty(tmp_path: Path, jpeg: Path, jpeg_bytes: bytes) -> ReIDDataset:
    """Train: a good sample, one with a bad rgb, one with nothing good; the test samples are query and gallery."""
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(jpeg_bytes[:-40])
    text = (("A.",), ("B.",))
    train = (
        Sample("a", 1, 0, -1, (jpeg, jpeg), text),
        Sample("b", 2, 0, -1, (bad, jpeg), text),
        Sample("c", 3, 0, -1, (None, bad), ((), ("B.",))),
    )
    test = (Sample("a", 4, 0, -1, (jpeg, bad)), Sample("d", 5, 0, -1, (jpeg, jpeg)))
    return ReIDDataset("toy", ("rgb", "tir"), "person", "camera", train, test[:1], test, ("before",))


def test_bad_images_are_counted_together(faulty: ReIDDataset) -> None:
    with pytest.raises(ValueError, match=r"3 images of 3 samples .*on_error=\"skip\".*on_error=\"mask\"") as error:
        faulty.drop_unreadable("raise")
    for name in ("the rgb image of sample 'b'", "the tir image of sample 'c'", "the tir image of sample 'a'"):
        assert name in str(error.value)
    with pytest.raises(ValueError, match="on_error must be one of raise, skip, mask; got 'drop'"):
        faulty.drop_unreadable("drop")


def test_bad_samples_are_skipped(faulty: ReIDDataset) -> None:
    seen: list[tuple[int, int]] = []
    data = faulty.drop_unreadable("skip", lambda done, total: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(1, 6)]  # query and gallery share one
    assert data.train == faulty.train[:1] and data.query == () and data.gallery == faulty.gallery[1:]
    assert data.notes == (
        "before",
        "train: 2 samples left out, an image cannot be read: b, c",
        "query: 1 samples left out, an image cannot be read: a",
        "gallery: 1 samples left out, an image cannot be read: a",
    )


def test_bad_modalities_are_masked(faulty: ReIDDataset) -> None:
    data = faulty.drop_unreadable("mask")
    a, b = data.train
    assert a is faulty.train[0]
    assert b == replace(faulty.train[1], images=(None, faulty.train[1].images[1]), captions=((), ("B.",)))
    assert data.query[0] is data.gallery[0] and data.query[0].images[1] is None and data.query[0].captions == ()
    assert data.gallery[1] is faulty.gallery[1]
    assert data.notes[1:] == (
        "train: 1 samples left out, all of their images cannot be read: c",
        "train: rgb of 1 samples cannot be read, missing: b",
        "query: tir of 1 samples cannot be read, missing: a",
        "gallery: tir of 1 samples cannot be read, missing: a",
    )


def test_good_sets_stay_as_they_are(faulty: ReIDDataset) -> None:
    good = replace(faulty, train=faulty.train[:1], query=(), gallery=())
    for on_error in ("raise", "skip", "mask"):
        assert good.drop_unreadable(on_error) is good
        assert drop_unreadable({"mine": good.train}, good.modalities, on_error) == ({"mine": good.train}, [])
    kept, notes = drop_unreadable({"samples": faulty.train}, faulty.modalities, "skip")
    assert [s.key for s in kept["samples"]] == ["a"]
    assert notes == ["samples: 2 samples left out, an image cannot be read: b, c"]


def test_the_digest_says_what_is_read_not_where(tmp_path: Path, jpeg: Path) -> None:
    def data(**changes: object) -> ReIDDataset:
        sample = replace(Sample("a", 1, 2, 3, (jpeg, np.zeros((2, 2), np.uint8)), (("A.",), ())), **changes)
        return ReIDDataset("toy", ("rgb", "tir"), "person", "camera", (sample,), (), (), ("a note",))

    base = data()
    assert len(base.digest()) == 16 and int(base.digest(), 16) >= 0 and base.digest() == data().digest()
    elsewhere = tmp_path / "elsewhere.jpg"
    shutil.copy(jpeg, elsewhere)
    same = [data(images=(elsewhere, base.train[0].images[1])), replace(base, name="other", notes=())]
    assert {d.digest() for d in same} == {base.digest()}
    longer = tmp_path / "longer.jpg"
    longer.write_bytes(jpeg.read_bytes() + b"\0")
    array = base.train[0].images[1]
    others = [
        data(key="b"),
        data(pid=2),
        data(camid=1),
        data(sceneid=-1),
        data(captions=(("A.", "B."), ())),
        data(captions=()),
        data(images=(longer, array)),
        data(images=(None, array)),
        data(images=(jpeg, None)),
        data(images=(jpeg, array + 1)),
        data(images=(jpeg, array.reshape(1, 4))),
        data(images=(ImageFile(jpeg, box=(0, 0, 1, 1)), array)),
        data(images=(ImageFile(jpeg, window="minmax"), array)),
        replace(base, modalities=("rgb", "nir")),
        replace(base, train=(), gallery=base.train),
        replace(base, query=base.train),
    ]
    assert len({d.digest() for d in [base, *others]}) == len(others) + 1
    jpeg.rename(tmp_path / "gone.jpg")
    with pytest.raises(FileNotFoundError):
        base.digest()


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def deep_tiff() -> bytes:
    """An RGB TIFF of 16 bits per channel, 4 x 2 pixels, uncompressed."""
    tags = [(256, 4, 4), (257, 4, 2), (258, 3, 0), (259, 3, 1), (262, 3, 2), (273, 4, 0), (277, 3, 3), (279, 4, 48)]
    bits_at = 8 + 2 + 12 * len(tags) + 4
    values = {258: bits_at, 273: bits_at + 6}
    entries = b"".join(
        struct.pack("<HHII", tag, form, 3 if tag == 258 else 1, values.get(tag, value)) for tag, form, value in tags
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return head + struct.pack("<HHH", 16, 16, 16) + bytes(48)


def deep_png() -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(b"".join(b"\0" + bytes(24) for _ in range(2)))
    head = struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def deep_jp2() -> bytes:
    """A JPEG 2000 of 8 bits whose header says 16: what is looked at is the header."""
    data = bytearray(encoded(Image.new("RGB", (4, 2)), "JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51") + 42
    data[at : at + 9 : 3] = b"\x0f\x0f\x0f"
    return bytes(data)


DEEP = {
    "ppm": lambda: b"P6 4 2 65535\n" + bytes(48),
    "pam.ppm": lambda: b"P6 4 2 1023\n" + bytes(48),
    "tif": deep_tiff,
    "png": deep_png,
    "jp2": deep_jp2,
}


@pytest.mark.parametrize("ending", DEEP)
def test_deep_colour_is_never_cut_silently(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(DEEP[ending]())
    with pytest.raises(ImageError, match=r"a\..*16 bits in each of several channels") as caught:
        open_image(path)
    assert caught.value.reason == "many-bits"


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "LA", "RGBA", "P", "1"])
@pytest.mark.parametrize("form", ["BMP", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"])
def test_every_form_of_8_bits_is_read(tmp_path: Path, form: str, mode: str) -> None:
    image = Image.new("RGB", (8, 8), (200, 200, 200)).convert("L").convert(mode, dither=Image.Dither.NONE)
    try:
        data = encoded(image, form)
    except (OSError, ValueError):
        pytest.skip(f"{form} holds no {mode}")
    (tmp_path / "a").write_bytes(data)
    pixels = EvalTransform((8, 8)).pixels(open_image(tmp_path / "a"))
    assert abs(pixels.astype(int) - (255 if mode == "1" else 200)).max() <= 3


@pytest.mark.filterwarnings("ignore:.*EXIF")
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", [b"garbage garbage", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0"])
def test_a_broken_exif_does_not_hide_the_pixels(tmp_path: Path, form: str, exif: bytes) -> None:
    (tmp_path / "a").write_bytes(encoded(Image.new("RGB", (8, 16), (9, 9, 9)), form, exif=exif))
    assert open_image(tmp_path / "a").size == (8, 16)


def test_bombs_are_named_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(deep_png().replace(struct.pack(">II", 4, 2), struct.pack(">II", 2**16, 2**16)))
    with pytest.raises(ImageError, match=r"a\.png"):
        open_image(path)
    path.write_bytes(b"P6 9000 9000 255\n")
    with pytest.raises(ImageError, match=r"a\.png.*more than the limit"):
        open_image(path)


def test_what_systems_leave_beside_images() -> None:
    assert all(map(is_sidecar, ("._a.jpg", ".DS_Store", "Thumbs.db")))
    assert all(map(is_sidecar, ("@eaDir", "__MACOSX", "desktop.ini"))) and not any(
        map(is_sidecar, ("a.jpg", "_a", "@"))
    )
