"""Images under the wrong modality or sample, odd ones and copies: each planted in trees with published names.

The images are synthetic persons. On the clean trees nothing but the size of the copy is reported.
"""

import csv
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextreid.data import ReIDDataset, Report, Sample, check_dataset, load_dataset, open_image
from nextreid.data.checks.facts import image_facts
from nextreid.retrieval import get_protocol

NAMED = os.environ.get("NEXTREID_REAL_IMAGES")
REAL = Path(NAMED) if NAMED else Path(__file__).parents[3] / "shared" / "data" / "real"
Files = dict[tuple[str, str], list[Path]]  # by split and modality, in the order of the samples
FOLDERS = {"rgbnt201": ("RGB", "NI", "TI"), "msvr310": ("vis", "ni", "th")}


@pytest.fixture(scope="module")
def persons() -> ReIDDataset:
    return load_dataset("synthetic-persons", num_train=18, num_test=14, frames_per_visit=2)


@pytest.fixture(scope="module")
def encoded(persons: ReIDDataset) -> dict[str, list[list[bytes]]]:
    """The images of each split as files, sample by sample."""

    def encode(image: object) -> bytes:
        buffer = io.BytesIO()
        open_image(image).save(buffer, "JPEG", quality=92)
        return buffer.getvalue()

    splits = {"train": persons.train, "test": persons.query}
    return {split: [[encode(image) for image in s.images] for s in samples] for split, samples in splits.items()}


@pytest.fixture(params=["rgbnt201", "msvr310"])
def layout(request) -> str:
    return request.param


@pytest.fixture
def tree(layout: str, persons: ReIDDataset, encoded, tmp_path: Path) -> Files:
    """A tree of the published layout; its files by split and modality, in the order of their names."""
    files: Files = {}
    for split, samples in (("train", persons.train), ("test", persons.query)):
        for number, (sample, images) in enumerate(zip(samples, encoded[split], strict=True)):
            pid = sample.pid % 1000 + (5000 if split == "test" else 0)
            for modality, folder, data in zip(persons.modalities, FOLDERS[layout], images, strict=True):
                if layout == "rgbnt201":
                    home = tmp_path / "RGBNT201" / {"train": "train_171", "test": "test"}[split] / folder
                    path = home / f"{pid:06d}_cam{sample.camid + 1}_0_{number:02d}.jpg"
                else:
                    home = tmp_path / "MSVR310" / f"bounding_box_{split}" / f"{pid:04d}" / folder
                    path = home / f"{pid:04d}_s{sample.camid:03d}_v{sample.camid}_{number:03d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                files.setdefault((split, modality), []).append(path)
    return {place: sorted(paths) for place, paths in files.items()}


def check(name: str, root: Path) -> Report:
    dataset = load_dataset(name, root)
    return check_dataset(dataset, get_protocol(dataset.protocol).exclude, captions=False, num_ids=2)


def found(report: Report) -> dict[tuple[str, str], int]:
    ours = {"incomplete-copy", "single-sample"}  # the tree is small
    return {(f.level, f.code): f.count for f in report.findings if f.code not in ours}


def exchange(one: Path, two: Path) -> None:
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def one_sample(files: Files, one: str = "nir", two: str = "tir") -> None:
    exchange(files["train", one][7], files["train", two][7])


def folders(files: Files, one: str, two: str, splits: tuple[str, ...]) -> None:
    for split in splits:
        for pair in zip(files[split, one], files[split, two], strict=True):
            exchange(*pair)


def shift(files: Files, modality: str, start: int = 0, splits: tuple[str, ...] = ("train",)) -> None:
    """Give each sample from `start` on the image of the next one, as where a file was missing."""
    for split in splits:
        paths = files[split, modality][start:]
        data = [path.read_bytes() for path in paths]
        for path, content in zip(paths, [*data[1:], data[0]], strict=True):
            path.write_bytes(content)


def overwrite(path: Path, image: Image.Image, form: str = "JPEG", **options: object) -> None:
    image.save(path, form, **options)


def noise(files: Files) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 128), dtype=np.uint8)
    overwrite(files["test", "nir"][2], Image.fromarray(pixels), quality=75)


def flat_with_hot_pixels(files: Files) -> None:
    pixels = np.full((256, 128), 7, np.uint8)
    pixels[3, 5:30] = 255
    overwrite(files["test", "tir"][2], Image.fromarray(pixels), "PNG")


def painted(files: Files) -> None:
    """Heat in false colours."""
    path = files["train", "tir"][5]
    grey = np.asarray(Image.open(path).convert("L"))
    overwrite(path, Image.fromarray(np.stack([grey, 255 - grey, grey // 2], axis=-1)))


def whole_frame(files: Files) -> None:
    path = files["train", "rgb"][3]
    overwrite(path, Image.open(path).resize((1920, 1080)))


def cmyk(files: Files) -> None:
    path = files["train", "rgb"][3]
    overwrite(path, Image.open(path).convert("CMYK"))


def saved_again(files: Files) -> None:
    """Three training images are in test too: of lower quality, resized, in another format."""
    images = [Image.open(path).copy() for path in files["train", "rgb"][3:6]]
    paths = files["test", "rgb"][3:6]
    overwrite(paths[0], images[0], quality=40)
    overwrite(paths[1], images[1].resize((96, 192)))
    overwrite(paths[2], images[2].convert("RGB"), "WEBP", quality=60)


ERROR, WARNING = ("error", "swapped-modalities"), ("warning", "swapped-modalities")
PLANTED: dict[str, tuple[Callable[[Files], object], tuple[str, str], int | None]] = {
    "rgb and tir of one sample": (lambda f: one_sample(f, "rgb", "tir"), ERROR, 1),
    "rgb and nir of one sample": (lambda f: one_sample(f, "rgb", "nir"), ERROR, 1),
    "nir and tir of one sample": (one_sample, WARNING, 1),
    "folders of rgb and tir": (lambda f: folders(f, "rgb", "tir", ("train", "test")), ERROR, None),
    "folders of rgb and nir in test": (lambda f: folders(f, "rgb", "nir", ("test",)), ERROR, None),
    "folders of nir and tir in test": (lambda f: folders(f, "nir", "tir", ("test",)), WARNING, None),
    "folders of nir and tir in train": (lambda f: folders(f, "nir", "tir", ("train",)), WARNING, None),
    "tir shifted": (lambda f: shift(f, "tir"), ("warning", "shifted-modality"), None),
    "nir shifted from the middle on": (lambda f: shift(f, "nir", 40), ("warning", "shifted-modality"), None),
    "noise": (noise, ("warning", "noise-image"), 1),
    "flat with hot pixels": (flat_with_hot_pixels, ("warning", "flat-image"), 1),
    "painted heat": (painted, ("warning", "colour"), 1),
    "size": (whole_frame, ("warning", "odd-size"), 1),
    "cmyk": (cmyk, ("warning", "cmyk"), 1),
    "saved again": (saved_again, ("warning", "near-copy"), 3),
}


def test_nothing_is_found_in_clean_trees(layout: str, tree: Files, tmp_path: Path) -> None:
    assert found(check(layout, tmp_path)) == {}


@pytest.mark.parametrize("layout", ["rgbnt201"], indirect=True)
@pytest.mark.parametrize(("plant", "finding", "count"), PLANTED.values(), ids=PLANTED)
def test_planted(layout: str, tree: Files, tmp_path: Path, plant, finding: tuple[str, str], count: int | None) -> None:
    plant(tree)
    seen = found(check(layout, tmp_path))
    assert finding in seen and count in (None, seen[finding])
    # nothing else is an error, or found of the other kinds
    assert {code for level, code in seen if level == "error"} <= {finding[1]}
    assert {code for _, code in seen} <= {finding[1], "uneven-sizes"}


@pytest.mark.parametrize("layout", ["msvr310"], indirect=True)
@pytest.mark.parametrize("name", ["rgb and tir of one sample", "nir and tir of one sample", "tir shifted"])
def test_planted_where_each_identity_has_folders(layout: str, tree: Files, tmp_path: Path, name: str) -> None:
    plant, finding, _ = PLANTED[name]
    plant(tree)
    assert set(found(check(layout, tmp_path))) == {finding}


def test_the_exchanged_sample_is_named(persons: ReIDDataset) -> None:
    sample = persons.train[7]
    rgb, nir, tir = sample.images
    train = (*persons.train[:7], replace(sample, images=(rgb, tir, nir)), *persons.train[8:])
    report = check_dataset(replace(persons, train=train), "camera", captions=False)
    (finding,) = (finding for finding in report.findings if finding.code == "swapped-modalities")
    assert finding.examples == (f"train {sample.key}",) and "nir and tir" in finding.message


def test_a_modality_in_colour_throughout_is_a_note(persons: ReIDDataset) -> None:
    def paint(sample: Sample) -> Sample:
        rgb, nir, tir = sample.images
        heat = np.asarray(open_image(tir).convert("L"))
        return replace(sample, images=(rgb, nir, np.stack([heat, heat // 2, 255 - heat], axis=-1)))

    changed = {split: tuple(map(paint, samples)) for split, samples in persons.splits().items()}
    report = check_dataset(replace(persons, **changed), "camera", captions=False)
    assert [(f.level, f.code) for f in report.findings if f.code in ("colour", "swapped-modalities")] == [
        ("note", "colour")
    ]


def test_what_an_image_keeps_is_small(persons: ReIDDataset) -> None:
    facts = image_facts(open_image(persons.train[0].images[0]))
    assert facts.thumb.nbytes + len(facts.content) < 1024 and not facts.flat and facts.smoothness > 0.3


def test_missing_and_tiny_images_are_no_trouble(persons: ReIDDataset) -> None:
    tiny = np.zeros((2, 1, 3), np.uint8)
    for images in ((None, None, None), (None, tiny, None), (tiny, tiny, tiny)):
        train = tuple(replace(sample, images=images) for sample in persons.train)
        codes = {f.code for f in check_dataset(replace(persons, train=train), "camera", captions=False).findings}
        assert not codes & {"swapped-modalities", "shifted-modality", "noise-image", "colour"}


# Real pixels, where they are there


def real(folder: str, modalities: tuple[str, ...]) -> list[dict[str, Path]]:
    root = REAL / folder
    if not root.is_dir():
        pytest.skip(f"no real images in {root}: set NEXTREID_REAL_IMAGES to the folder that holds tno and roadscene")
    return [{m: root / m / path.name for m in modalities} for path in sorted((root / modalities[0]).iterdir())][:60]


def real_dataset(moments: list[dict[str, Path]]) -> ReIDDataset:
    modalities = tuple(moments[0])
    samples = [Sample(m[modalities[0]].name, i, 0, -1, tuple(m.values())) for i, m in enumerate(moments)]
    return ReIDDataset("real", modalities, "scene", "none", tuple(samples[::2]), (), tuple(samples[1::2]))


def real_findings(moments: list[dict[str, Path]], *, train: bool = True) -> dict[tuple[str, str], int]:
    dataset = real_dataset(moments)
    if not train:
        every = tuple(sorted((*dataset.train, *dataset.gallery), key=lambda sample: sample.key))
        dataset = replace(dataset, train=(), gallery=every)
    report = check_dataset(dataset, "none", captions=False)
    # two pairs of scenes of TNO are the same pixels in one spectrum, which is found rightly
    ignored = {"empty-split", "few-identities", "single-sample", "uneven-sizes", "identity-conflict", "train-test-copy"}
    return {(f.level, f.code): f.count for f in report.findings if f.code not in ignored}


REAL_SETS = (("tno", ("rgb", "nir", "tir")), ("roadscene", ("rgb", "tir")))


@pytest.mark.parametrize(("folder", "modalities", "train"), [(*REAL_SETS[0], True), *((*s, False) for s in REAL_SETS)])
def test_nothing_is_found_in_clean_real_images(folder: str, modalities: tuple[str, ...], train: bool) -> None:
    assert real_findings(real(folder, modalities), train=train) == {}


@pytest.mark.parametrize(("folder", "modalities"), REAL_SETS)
def test_shifted_real_images(folder: str, modalities: tuple[str, ...]) -> None:
    moments = real(folder, modalities)
    shifted = [{**one, "tir": two["tir"]} for one, two in zip(moments, [*moments[1:], moments[0]], strict=True)]
    assert set(real_findings(shifted, train=False)) == {("warning", "shifted-modality")}


def test_exchanged_real_images() -> None:
    moments = real("tno", ("rgb", "nir", "tir"))
    everywhere = [{**moment, "nir": moment["tir"], "tir": moment["nir"]} for moment in moments]
    assert real_findings(everywhere, train=False) == {WARNING: len(moments)}
    one = [everywhere[place] if place == 9 else moment for place, moment in enumerate(moments)]
    assert real_findings(one, train=False) == {WARNING: 1}
    roads = real("roadscene", ("rgb", "tir"))
    roads[9] = {"rgb": roads[9]["tir"], "tir": roads[9]["rgb"]}
    assert real_findings(roads, train=False) == {ERROR: 1}


def test_nothing_is_found_in_clean_real_objects() -> None:
    real("roadscene", ("rgb", "tir"))
    samples, frames = [], {}
    with (REAL / "roadscene" / "objects.csv").open(newline="") as file:
        for number, row in zip(range(150), csv.DictReader(file), strict=False):
            left, top, width, height = (int(float(row[name])) for name in ("x", "y", "width", "height"))
            box = (max(left, 0), max(top, 0), left + width, top + height)
            crops = []
            for modality in ("rgb", "tir"):
                path = REAL / "roadscene" / modality / row["frame"]
                pixels = frames.setdefault(path, open_image(path).convert("RGB"))
                crops.append(np.asarray(pixels.crop(box)))
            samples.append(Sample(f"{number:03d}", number, 0, -1, tuple(crops)))
    dataset = ReIDDataset("objects", ("rgb", "tir"), "object", "none", (), (), tuple(samples))
    codes = {(f.level, f.code) for f in check_dataset(dataset, "none", captions=False).findings}
    assert {code for _, code in codes} <= {"empty-split", "odd-size"}
