"""Real scenes in three spectra, TNO's, as files of every format: from the loaders to vectors and figures."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextreid.data import ReIDDataset, load_dataset, read_folder, read_manifest, read_pattern
from nextreid.data.checks import check_dataset
from nextreid.engine import FeatureExtractor, extract, load_embeddings, modality_matrix
from nextreid.engine.figures import expert_masks
from nextreid.models import create_model

MODALITIES = ("rgb", "nir", "tir")
TNO = Path(os.environ.get("NEXTREID_REAL") or "no folder") / "tno"
SCENES = ("Marne_04", "houses_with_3_men")  # 620 x 450 and larger, three equal channels
DEEP = (2000.0, 2000.0 + 16 * 255)

pytestmark = pytest.mark.skipif(not TNO.is_dir(), reason="NEXTREID_REAL names no folder with tno/rgb, tno/nir, tno/tir")


def grey(image):
    return np.asarray(image.convert("L"))


def raw(image):
    """Values of 12 bits and an offset, as cameras give them."""
    return grey(image).astype(np.uint16) * 16 + 2000


FORMATS = {
    "BMP": (".bmp", lambda image: image),
    "BMP of one channel": (".bmp", lambda image: image.convert("L")),
    "PNG of one channel": (".png", lambda image: image.convert("L")),
    "palette": (".png", lambda image: image.convert("L").convert("P")),
    "alpha": (".PNG", lambda image: image.convert("RGBA")),
    "PPM": (".ppm", lambda image: image),
    "16-bit PNG": (".png", lambda image: Image.fromarray(raw(image))),
    "16-bit TIFF": (".tiff", lambda image: Image.fromarray(raw(image))),
    "16-bit PGM": (".pgm", lambda image: Image.fromarray(raw(image))),
    "float TIFF": (".tif", lambda image: Image.fromarray(raw(image).astype(np.float32))),
}


def write(folder, formats, scenes=SCENES):
    """Write copies of scenes, each modality in a format of its own."""
    for modality, name in zip(MODALITIES, formats, strict=True):
        ending, convert = FORMATS[name]
        (folder / modality).mkdir(parents=True)
        for scene in scenes:
            with Image.open(TNO / modality / f"{scene}.png") as image:
                convert(image).save(folder / modality / (scene + ending))
    return folder


def windows(formats):
    return {m: DEEP for m, name in zip(MODALITIES, formats, strict=True) if "16-bit" in name or "float" in name}


def originals(scene):
    return {modality: TNO / modality / f"{scene}.png" for modality in MODALITIES}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    stage = {"image_tower": "tf_efficientnet_lite0", "image_tower_args": {"stage": 3}, "embed_dim": 64}
    head = {"num_heads": 4, "mlp_ratio": 1.0, "ffn_ratio": 1.0, "mmfa_residual": True}
    return create_model("next", text_tower=None, img_size=(96, 128), head=head, **stage).eval()


@pytest.fixture(scope="module")
def expected(model):
    return FeatureExtractor(model)([originals(scene) for scene in SCENES])


@pytest.mark.parametrize(
    "formats",
    [
        ("BMP", "BMP of one channel", "16-bit PNG"),
        ("palette", "PNG of one channel", "16-bit TIFF"),
        ("PPM", "16-bit PGM", "float TIFF"),
        ("alpha", "alpha", "palette"),
    ],
    ids=", ".join,
)
def test_the_format_of_a_file_changes_nothing(model, expected, formats, tmp_path):
    folder, window = write(tmp_path / "tno", formats), windows(formats)
    samples = read_folder(folder, MODALITIES, window)
    assert [Path(sample.key).stem for sample in samples] == list(SCENES)
    extract(model, samples, tmp_path / "folder")
    torch.testing.assert_close(load_embeddings(tmp_path / "folder")[0], expected)
    found = FeatureExtractor(model, window=window)(
        [{m: next((folder / m).glob(f"{scene}.*")) for m in MODALITIES} for scene in SCENES]
    )
    torch.testing.assert_close(found, expected)

    with (folder / "scenes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = [[str(next((folder / m).glob(f"{s}.*")).relative_to(folder)) for m in MODALITIES] for s in SCENES]
        writer.writerows([MODALITIES, *names])
    listed = read_manifest(folder / "scenes.csv", window=window)
    assert [sample.images for sample in listed] == [sample.images for sample in samples]
    pattern = read_pattern(folder, "{modality}/{pid:word}.{ext}", window=window)
    assert [sample.images for sample in pattern] == [sample.images for sample in samples]


def test_raw_values_without_a_window_are_named_by_loader_and_check(model, tmp_path):
    folder = write(tmp_path / "tno", ("BMP", "palette", "16-bit TIFF"))
    with pytest.raises(ValueError, match=r"more than 8 bits.*window="):
        FeatureExtractor(model)(tir=folder / "tir" / f"{SCENES[0]}.tiff")
    with (folder / "scenes.csv").open("w", newline="") as file:
        rows = [(s, split, f"rgb/{s}.bmp", f"tir/{s}.tiff") for s in SCENES for split in ("query", "gallery")]
        csv.writer(file).writerows([("pid", "split", "rgb", "tir"), *rows])
    for window, codes in ((None, {"many-bits"}), ({"tir": DEEP}, set())):
        dataset = load_dataset("manifest", folder / "scenes.csv", window=window)
        found = {finding.code for finding in check_dataset(dataset, "none").findings}
        assert found & {"many-bits", "unreadable", "flat-image", "noise-image"} == codes


def test_a_missing_spectrum_has_no_part_and_the_others_stay_comparable(model, expected):
    extractor = FeatureExtractor(model, normalize=False)
    for hidden in range(3):
        shown = [{m: p for i, (m, p) in enumerate(originals(s).items()) if i != hidden} for s in SCENES]
        parts = model.modality_parts(extractor(shown))
        assert not parts[:, hidden].any() and (parts[:, [m for m in range(3) if m != hidden]] != 0).any(2).all()
    with Image.open(TNO / "rgb" / f"{SCENES[0]}.png") as image:
        alone = extractor(rgb=image)
    torch.testing.assert_close(alone, extractor(rgb=TNO / "rgb" / f"{SCENES[0]}.png"))


def test_every_subset_of_the_spectra_finds_its_scene(model, tmp_path):
    with (tmp_path / "scenes.csv").open("w", newline="") as file:
        rows = [(f"{s} {c}", s, c, ("query", "gallery")[c], *originals(s).values()) for s in SCENES for c in (0, 1)]
        csv.writer(file).writerows([("key", "pid", "camid", "split", *MODALITIES), *rows])
    dataset = load_dataset("manifest", tmp_path / "scenes.csv", anywhere=True)
    reports = modality_matrix(model, dataset, protocol="camera", cross=True)
    assert len(reports) == 49
    alike = [r for r in reports if len(set(r.result.protocol.name.partition(":")[2].split(">"))) == 1]
    assert len(alike) == 7 and all(report.result.mAP == 1 for report in alike)


def test_masks_of_the_experts_are_drawn_on_images_of_odd_sizes(model, tmp_path):
    folder = write(tmp_path / "tno", ("BMP", "16-bit PNG", "palette"))
    samples = [replace(sample, pid=0) for sample in read_folder(folder, MODALITIES, {"nir": DEEP})]
    dataset = ReIDDataset("tno", MODALITIES, "scene", "none", (), tuple(samples), tuple(samples))
    whole = expert_masks(model, dataset, samples, image_size=96)
    blind = [replace(sample, images=(sample.images[0], None, sample.images[2])) for sample in samples]
    assert whole.size == expert_masks(model, dataset, blind, image_size=96).size
    png = write(tmp_path / "png", ("PNG of one channel",) * 3)
    same = [replace(sample, pid=0) for sample in read_folder(png)]
    same = [replace(sample, key=other.key) for sample, other in zip(same, samples, strict=True)]
    assert np.array_equal(whole, expert_masks(model, dataset, same, image_size=96))
