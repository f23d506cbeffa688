"""``nextreid gallery``, from a folder of images to a deleted identity, and what each mistake answers."""

import csv
import json

import pytest
from PIL import Image

from nextreid import create_model, save_model
from nextreid.cli import main
from nextreid.synthetic import synthetic_persons


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A manifest of 24 persons' images with captions, and a model."""
    folder = tmp_path_factory.mktemp("photos")
    data = synthetic_persons("tiny", num_train=1, num_test=6, frames_per_visit=1).dataset
    with (folder / "photos.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "pid", "camid", *data.modalities, "caption_rgb"])
        for number, sample in enumerate(data.gallery):
            images = []
            for modality, image in zip(data.modalities, sample.images, strict=True):
                images.append(f"{modality}_{number}.png")
                Image.fromarray(image).save(folder / images[-1])
            writer.writerow(
                [f"k{number}", f"p{sample.pid % 100}", f"gate{sample.camid}", *images, " ".join(sample.captions[0])]
            )
    with (folder / "more.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["key", "time", "shift"], *([f"k{i}", 100 * i, "night"] for i in range(3))])
    save_model(create_model("next_tiny", pretrained=True), folder / "model")
    return folder


@pytest.fixture
def run(capsys):
    def run(*words):
        status = main(["gallery", *map(str, words)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="module")
def people(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("people") / "people"
    assert main(["gallery", "create", str(folder), str(photos / "model"), "--words", "--device", "cpu"]) == 0
    words = [
        "gallery",
        "add",
        folder,
        photos / "photos.csv",
        "--attributes",
        "person",
        "--metadata",
        photos / "more.csv",
    ]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    return folder


def images(photos, number=0, modalities=("rgb", "nir", "tir")):
    return ["--image", *(f"{m}={photos / f'{m}_{number}.png'}" for m in modalities)]


def test_search_by_images_draws_and_writes_the_answers(run, people, photos, tmp_path):
    files = ["--out", tmp_path / "found.png", "--json", tmp_path / "found.json"]
    status, out, _ = run("search", people, *images(photos), "--top", 3, *files)
    found = json.loads((tmp_path / "found.json").read_text())
    assert status == 0 and out.splitlines()[1].split()[1] == "1.000" and found[0]["key"] == "k0"
    assert [hit["score"] for hit in found] == sorted((hit["score"] for hit in found), reverse=True) and len(found) == 3
    assert found[0]["time"] == 0 and found[0]["metadata"]["shift"] == "night" and found[0]["camera"].startswith("gate")
    assert Image.open(tmp_path / "found.png").width > 400
    assert run("search", people, *images(photos, 1, ["tir"]), "--top", 1)[0] == 0


def test_search_by_words_and_by_attributes(run, people, tmp_path):
    status, out, _ = run(
        "search", people, "--text", "an adult in a red jacket", "--top", 2, "--out", tmp_path / "a.png"
    )
    assert status == 0 and len(out.splitlines()) == 4 and (tmp_path / "a.png").is_file()
    status, out, _ = run(
        "search", people, "--where", "time=50..", "shift=night", "shift=day", "--json", tmp_path / "b.json"
    )
    assert status == 0 and {row["key"] for row in json.loads((tmp_path / "b.json").read_text())} == {"k1", "k2"}
    assert "score" not in out and "shift" in out
    status, out, _ = run("search", people, "--where", "camera=nowhere", "--out", tmp_path / "none.png")
    assert status == 0 and "no entry found" in out and not (tmp_path / "none.png").exists()
    status, _, err = run("search", people, "--where", "upper_clothing_colour=red")
    assert status == 2 and "Did you mean 'upper_clothing_color'" in err


def test_the_gallery_is_described_merged_and_deleted_from(run, people, photos, tmp_path):
    status, out, _ = run("info", people, "--json", tmp_path / "info.json")
    facts = json.loads((tmp_path / "info.json").read_text())
    assert status == 0 and facts["model"] == "next_tiny" and facts["words"] == 64 and str(facts["entries"]) in out
    copy = tmp_path / "copy"
    run("create", copy, photos / "model", "--words", "--device", "cpu")
    status, out, _ = run("merge", copy, "--gallery", people)
    assert status == 0 and out == f"{facts['entries']} entries added, {facts['entries']} in all\n"
    assert run("merge", copy, "--identity", "p1", "p0")[1].endswith("entries of p1 are p0 now\n")
    status, out, _ = run("delete", copy, "--identity", "p0", "--compact")
    assert status == 0 and " 0 left on the disk" in out
    assert b"p0" not in (copy / "gallery.sqlite").read_bytes()
    assert run("delete", copy, "--key", "k9")[1].endswith(f"'nextreid gallery compact {copy}'\n")
    assert run("compact", copy)[1].startswith("1 deleted vectors removed, 0 left")
    assert run("verify", copy)[:2] == (0, run("verify", copy)[1]) and "are what was added" in run("verify", copy)[1]
    (file,) = copy.glob("*.f16")
    file.write_bytes(b"\1" + file.read_bytes()[1:])
    status, out, _ = run("verify", copy)
    assert status == 1 and out.startswith("damaged: k")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search"], "say what to search for: --image"),
        (["search", "--image", "rgb"], "--image takes MODALITY=FILE"),
        (["search", "--image", "rgb=nothing.png"], "no file nothing.png"),
        (["search", "--where", "camera"], "--where takes NAME=VALUE pairs, got 'camera'"),
        (["search", "--where", "time=1..2", "time=3"], "'time' takes one range, or several values"),
        (["search", "--where", "camera=x", "--match"], "--match says who an image shows"),
        (["search", "--where", "camera=x", "--out", "found.txt"], "found.txt"),
        (["delete"], "say what to delete"),
        (["delete", "--identity", "P1"], "unknown identity 'P1'. Did you mean 'p1'"),
        (["delete", "--before", "soon"], "time must be seconds or like"),
        (["merge", "--gallery", "nowhere"], "nowhere is no gallery; make one with"),
    ],
)
def test_mistakes_are_told_in_one_line(run, people, words, message):
    status, out, err = run(words[0], people, *words[1:])
    assert status == 2 and out == "" and message in err and "Traceback" not in err


def test_images_are_added_once_and_what_extract_wrote_too(run, people, photos, tmp_path):
    status, _, err = run("add", people, photos / "photos.csv", "--device", "cpu")
    assert status == 2 and "keys are in gallery" in err and "--known" in err
    status, out, _ = run("add", people, photos / "photos.csv", "--known", "skip", "--device", "cpu")
    assert status == 0 and out.startswith("0 entries of 0 identities added")
    words = [
        "extract",
        photos / "model",
        photos / "photos.csv",
        "--out",
        tmp_path / "out",
        "--no-text",
        "--device",
        "cpu",
    ]
    assert main([str(word) for word in words]) == 0
    run("create", tmp_path / "g", photos / "model", "--device", "cpu")
    status, out, err = run("add", tmp_path / "g", tmp_path / "out")
    assert status == 0 and "entries of 6 identities added" in out.splitlines()[-1], err
