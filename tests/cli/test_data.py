"""``nextreid data``: what a stranger types, what it answers, and the exit status."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from nextreid.cli import main
from nextreid.data import list_datasets, load_dataset
from nextreid.synthetic import write_folder_layout

MODALITIES = ("rgb", "nir", "tir")


@pytest.fixture
def run(capsys):
    """Run a command; return (status, stdout, stderr)."""

    def run(*words):
        capsys.readouterr()
        status = main(["data", *map(str, words)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def tree(tmp_path):
    persons = load_dataset("synthetic-persons", num_train=8, num_test=3, frames_per_visit=2)
    return write_folder_layout(persons, tmp_path / "RGBNT201")


def write_images(folder, split="test", ids=3, cameras=2, frames=2):
    """``{split}/{modality}/{pid}_c{camid}_{frame}.png``."""
    names = [f"{pid}_c{camid}_{frame}.png" for pid in range(ids) for camid in range(cameras) for frame in range(frames)]
    for number, modality in enumerate(MODALITIES):
        home = folder / split / modality
        home.mkdir(parents=True)
        for seed, name in enumerate(names):
            pixels = np.random.default_rng((number, seed)).integers(0, 256, (8, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / name)
    return names


def write_manifest(folder, names, camid=None):
    path = folder / "list.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["split", "pid", "camid", *MODALITIES])
        for name in names:
            pid, camera, _ = name.split("_")
            where = camera[1:] if camid is None else camid
            table.writerow(["test", pid, where, *(f"test/{m}/{name}" for m in MODALITIES)])
    return path


def test_a_clean_tree(run, tree, tmp_path):
    out = tmp_path / "reports" / "check.json"
    status, text, err = run("check", "rgbnt201", "--root", tree, "--captions", tree, "--json", out)
    assert status == 0 and err == ""
    assert text.startswith("rgbnt201: rgb, nir, tir; protocol rgbnt201")
    assert "identities" in text and "usable: 0 errors, 1 warning," in text
    report = json.loads(out.read_text())
    assert report["ok"] is True and report["splits"]["train"]["ids"] == 8
    assert list(out.parent.iterdir()) == [out]


def test_a_damaged_tree(run, tree):
    victim = next((tree / "test" / "TI").iterdir())
    victim.write_bytes(victim.read_bytes()[:200])
    status, text, _ = run("check", "rgbnt201", "--root", tree)
    assert (
        status == 1 and "error [unreadable] images that cannot be read: 1 (test tir 1)" in text and str(victim) in text
    )
    assert text.rstrip().endswith("not usable as it is: 1 error, 1 warning, 0 notes")
    status, text, _ = run("check", "rgbnt201", "--root", tree, "--quick")
    assert status == 0 and "not opened (--quick)" in text


def test_what_the_reader_noticed_is_said_once(run, tree, caplog):
    next((tree / "test" / "NI").iterdir()).unlink()
    status, text, _ = run("check", "rgbnt201", "--root", tree, "--quick")
    assert status == 0 and "note [missing-modality]" in text and "note [reader]" in text and not caplog.records
    run("check", "rgbnt201", "--root", tree, "--quick", "-v")
    assert any("lack nir" in record.message for record in caplog.records)


def test_long_captions_are_counted_by_clips_tokenizer(run, tree):
    path = tree / "train_RGB.json"
    entries = json.loads(path.read_text())
    entries[0]["description"] = "He walks. " * 25  # 3 tokens each, and two marks
    entries[1]["description"] = "He walks. " * 26
    path.write_text(json.dumps(entries))
    status, text, _ = run("check", "rgbnt201", "--root", tree, "--captions", tree, "--quick")
    assert status == 0 and "77 tokens: 1 (train rgb " in text and f"{entries[1]['item']}: 80 tokens" in text


@pytest.mark.parametrize(("camid", "protocol", "expected"), [(None, None, 0), (0, None, 1), (0, "none", 0)])
def test_a_manifest_of_one_camera(run, tmp_path, camid, protocol, expected):
    path = write_manifest(tmp_path, write_images(tmp_path), camid)
    status, text, _ = run("check", path, *(["--protocol", protocol] if protocol else []))
    assert status == expected
    assert ("queries that can never match: 12 of 12" in text) == (expected == 1)
    assert ("every sample has camid 0" in text) == (expected == 1)


def test_a_manifest_in_another_encoding_with_words_for_labels(run, tmp_path):
    write_images(tmp_path)
    lines = ["key;pid;camid;rgb;split"]
    lines += [f"{who}{cam};{who};{cam};test\\rgb\\0_c0_0.png;test" for who in ("é", "b") for cam in ("left", "right")]
    path = tmp_path / "list.csv"
    path.write_bytes("\n".join(lines).encode("cp1252"))
    status, _, err = run("check", path, "--quick")
    assert status == 2 and "encoding='cp1252'" in err
    status, text, _ = run("check", path, "--quick", "--dataset-arg", "encoding=cp1252")
    assert status == 0 and "identities at camera left" in text and "note [reader] pid: words" in text


def test_one_modality_of_a_folder(run, tmp_path):
    write_images(tmp_path)
    status, text, _ = run("check", tmp_path / "test", "--quick", "--dataset-arg", "modalities=rgb")
    assert status == 0 and text.startswith("test: rgb; protocol none")


def test_a_bad_manifest_cannot_be_read(run, tmp_path):
    path = write_manifest(tmp_path, write_images(tmp_path))
    (tmp_path / "test" / "nir" / "1_c0_0.png").unlink()
    status, text, err = run("check", path)
    assert status == 2 and text == "" and "nir" in err and "1_c0_0.png" in err and "Traceback" not in err


def test_a_folder_by_its_pattern(run, tmp_path):
    write_images(tmp_path, "train", ids=8)
    status, text, _ = run("check", tmp_path, "--pattern", "{split}/{modality}/{pid}_c{camid}_{*}.png", "--num-ids", 9)
    assert status == 0 and "few-identities" in text and "empty-split" in text


def test_unlabelled_images(run, tmp_path):
    write_images(tmp_path, "new", ids=2)
    status, text, _ = run("check", tmp_path / "new")
    assert status == 0 and "note [unlabelled]" in text and "samples" in text
    (tmp_path / "new" / "tir" / "0_c0_0.png").write_bytes(b"")
    status, text, _ = run("check", tmp_path / "new")
    assert status == 1 and "(gallery tir 1)" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no such file or folder, and unknown dataset 'nowhere'"),
        (["rgbnt210"], "Did you mean 'rgbnt201'"),
        (["."], "Name what the folder is: a published dataset (nextreid data check NAME --root"),
        (["rgbnt201", "--root", "."], "no RGBNT201 in ."),
        ([".", "--root", "."], "--root goes with the name of a dataset"),
        (["synthetic-persons", "--protocol", "nothing"], "unknown protocol 'nothing'"),
        (["synthetic-persons", "--dataset-arg", "nothing"], "NAME=VALUE"),
    ],
)
def test_mistakes(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    status, text, err = run("check", *words)
    assert status == 2 and text == "" and "Traceback" not in err
    assert err.startswith("nextreid data: ") and message in err


def test_cards_and_the_list(run):
    status, text, _ = run("card", "wmveid863")
    assert status == 0 and "MSVR310" in text and "868" in text
    status, text, err = run("card", "veri")
    assert status == 2 and "unknown dataset card 'veri'" in err
    status, text, _ = run("list")
    lines = text.splitlines()
    assert status == 0 and [line.split()[0] for line in lines] == list_datasets()
    assert all(len(line.split()) > 3 for line in lines)
