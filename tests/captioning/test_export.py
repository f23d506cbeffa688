"""Files of captions: the published form, the table, and what a run notes."""

import json

import pytest

from nextreid.captioning import get_schema, read_captions
from nextreid.captioning.compose import compose
from nextreid.captioning.export import (
    caption_file,
    describe,
    read_run,
    read_table,
    write_captions,
    write_run,
    write_table,
)
from nextreid.captioning.merge import best_of, complement
from nextreid.captioning.run import ImageEntry, Sampling

SCHEMA = get_schema("person")


def descriptions():
    told = []
    for n, split in enumerate(("train", "train", "test")):
        voices = {
            m: best_of({v: {"age": SCHEMA.answer("age", "adult", 0.5 + k / 10),
            "backpack": SCHEMA.answer("backpack", w)}
                        for k, (v, w) in enumerate({"a": "yes", "b": "no idea"}.items())})
            for m in ("rgb", "tir")
        }  # fmt: skip
        for modality, merged in complement(voices, SCHEMA).items():
            sentences = compose(merged.answers, SCHEMA, modality) if n or modality == "rgb" else ()
            told.append(describe(merged, sentences, ImageEntry(f"{n:04d}_é.jpg", modality, split, f"d{n}{modality}")))
    return told


def test_captions_in_the_published_form(tmp_path):
    told = descriptions()
    files = write_captions(tmp_path / "new", told)
    assert [f.name for f in files] == ["train_RGB.json", "train_TI.json", "test_RGB.json", "test_TI.json"]
    assert read_captions(files[0]) == {d.key: d.caption for d in told if (d.split, d.modality) == ("train", "rgb")}
    assert list(read_captions(files[1])) == ["0001_é.jpg"]  # an image without a caption is left out
    assert set(json.loads(files[0].read_text())[0]) == {"item", "description"}
    assert caption_file("all", "swir") == "all_SWIR.json" and caption_file("test", "nir") == "test_NI.json"


def test_the_table_holds_everything(tmp_path):
    told = descriptions()
    path = write_table(tmp_path / "a.parquet", told, SCHEMA)
    again, schema = read_table(path)
    assert again == told and schema == SCHEMA and schema.digest() == SCHEMA.digest()
    trail = again[0].trail
    assert [d["step"] for d in trail if d["field"] == "backpack"] == ["models", "modalities"]
    assert trail[0]["votes"][1] == {"voice": "b", "value": "adult", "confidence": 0.6} and trail[0]["winner"] == "b"
    assert [f.name for f in tmp_path.iterdir()] == ["a.parquet"]


def test_what_a_run_notes_comes_back(tmp_path):
    run = (SCHEMA, ["a", "b"], Sampling(2, 0.5, 100), [ImageEntry("k", "rgb", "train", "d")])
    write_run(tmp_path / "run.json", *run)
    assert read_run(tmp_path / "run.json") == run


@pytest.mark.parametrize("reader", [read_table, read_run])
def test_what_is_no_such_file_is_named(tmp_path, reader):
    with pytest.raises(FileNotFoundError, match="here"):
        reader(tmp_path / "here")
    (tmp_path / "other").write_text('{"format": 9}')
    with pytest.raises(ValueError, match="other"):
        reader(tmp_path / "other")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    import os

    told = descriptions()
    write_captions(tmp_path, told)
    with (tmp_path / "train_RGB.json").open() as reader:  # a reader keeps the whole old file while a new one comes
        write_captions(tmp_path, told[:1])
        assert len(json.load(reader)) == 2
    write_captions(tmp_path, told)
    before = [f.read_bytes() for f in write_captions(tmp_path, told)]
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_captions(tmp_path, told[:1])
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(
        ["train_RGB.json", "train_TI.json", "test_RGB.json", "test_TI.json"]
    )
    assert (tmp_path / "train_RGB.json").read_bytes() == before[0]
