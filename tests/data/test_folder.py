"""A folder as it lies on a disk: modalities and identities by subfolders, and what is refused."""

from pathlib import Path

import pytest

from nextreid.data import load_dataset


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("form", ["{pid}/{modality}/{name}", "{modality}/{pid}/{name}", "{pid}/day/{modality}/{name}"])
def test_modalities_and_identities_are_folders_in_any_order(tmp_path, form):
    files = [(pid, m, f"{i}.png") for pid in ("anna", "bob") for m in ("RGB", "th") for i in range(2)]
    touch(tmp_path, *(form.format(pid=pid, modality=m, name=name) for pid, m, name in files))
    dataset = load_dataset("folder", tmp_path)
    assert dataset.query == dataset.gallery and not dataset.train and dataset.protocol == "none"
    assert [(s.pid, s.images[1]) for s in dataset.query] == [(0, None), (0, None), (1, None), (1, None)]
    assert dataset.label_names["pid"] == {0: "anna", 1: "bob"}
    assert all("RGB" in str(s.images[0]) and "th" in str(s.images[2]) for s in dataset.query)


def test_without_a_modalitys_folder_all_images_are_of_one(tmp_path):
    touch(tmp_path, "photos/7/a.png", "photos/7/b.jpg", "photos/c.jpg", "photos/notes.txt", "photos/.hidden.png")
    dataset = load_dataset("folder", tmp_path / "photos")
    assert [(s.key, s.pid) for s in dataset.query] == [("7/a.png", 7), ("7/b.jpg", 7), ("c.jpg", -1)]
    assert all(s.images[0] and s.images[1:] == (None, None) for s in dataset.query)
    assert "1 of 3 samples have no folder of an identity" in dataset.notes
    (tmp_path / "photos").rename(tmp_path / "TIR")
    assert all(s.images[:2] == (None, None) and s.images[2] for s in load_dataset("folder", tmp_path / "TIR").query)
    (tmp_path / "TIR").rename(tmp_path / "thermal")
    assert "the images are taken as rgb" in load_dataset("folder", tmp_path / "thermal").notes[-1]


def test_images_beside_the_modalities_folders_are_left_out(tmp_path, caplog):
    touch(tmp_path, "rgb/a.png", "photo/a.png", "logo.png")
    assert [s.key for s in load_dataset("folder", tmp_path).query] == ["a.png"]
    assert "2 files left out" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("thermal/a.png", "anna/a.png"), "thermal looks like a modality; name such folders rgb, nir, tir"),
        (("query/anna/a.png", "gallery/anna/b.png"), "gallery, query are splits, not identities"),
        (("rgb/a.png", "vis/a.png"), "two files are one rgb image"),
        (("a/notes.txt",), r"no image of the form \S+/name.jpg or \S+/\{rgb,nir,tir\}/name.jpg"),
    ],
)
def test_what_is_no_such_folder_is_named(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_dataset("folder", tmp_path)


def test_a_spectrum_of_another_name_can_be_declared(tmp_path):
    touch(tmp_path, "rgb/1/a.png", "thermal/1/a.png")
    (sample,) = load_dataset("folder", tmp_path, modalities=("rgb", "thermal")).query
    assert sample.pid == 1 and None not in sample.images


def test_some_identities_can_be_drawn_for_training(tmp_path):
    touch(tmp_path, *(f"rgb/{pid}/{i}.png" for pid in range(6) for i in range(3)))
    dataset = load_dataset("folder", tmp_path, train=0.5, seed=1)
    learned, searched = ({s.pid for s in split} for split in (dataset.train, dataset.query))
    assert len(learned) == len(searched) == 3 and not learned & searched
    assert dataset.query == dataset.gallery and dataset.protocol == "none"
