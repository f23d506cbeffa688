"""Files of captions: the published form, the table, and the record of a run."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextreid.captioning import Answer, compose, get_schema
from nextreid.captioning.distribution import answer_of
from nextreid.captioning.export import (
    Description,
    describe,
    read_run,
    read_table,
    write_captions,
    write_run,
    write_table,
)
from nextreid.captioning.merge import best_of, complement
from nextreid.captioning.pipeline import CaptionRequest, Sampling
from nextreid.captioning.runner import Source
from nextreid.data.captions import caption_file_name, portable_name, read_captions

SCHEMA = get_schema("person")


def descriptions():
    described = []
    for n, split in enumerate(("train", "train", "test")):
        annotators = {
            m: best_of({v: {"age": SCHEMA.answer("age", "adult", 0.5 + k / 10),
            "backpack": SCHEMA.answer("backpack", w)}
                        for k, (v, w) in enumerate({"a": "yes", "b": "no idea"}.items())})
            for m in ("rgb", "tir")
        }  # fmt: skip
        for modality, merged in complement(annotators, SCHEMA).items():
            sentences = compose(merged.answers, SCHEMA, modality) if n or modality == "rgb" else ()
            described.append(
                describe(merged, sentences, CaptionRequest(f"{n:04d}_é.jpg", modality, None, split, f"d{n}{modality}"))
            )
    return described


def test_captions_in_the_published_form(tmp_path):
    described = descriptions()
    files = write_captions(tmp_path / "new", described)
    assert [f.name for f in files] == ["train_RGB.json", "train_TI.json", "test_RGB.json", "test_TI.json"]
    assert read_captions(files[0]) == {d.key: d.caption for d in described if (d.split, d.modality) == ("train", "rgb")}
    assert list(read_captions(files[1])) == ["0001_é.jpg"]  # an image without a caption is left out
    assert set(json.loads(files[0].read_text())[0]) == {"item", "description"}
    assert caption_file_name("all", "swir") == "all_SWIR.json" and caption_file_name("test", "nir") == "test_NI.json"


def test_the_table_holds_everything(tmp_path):
    described = descriptions()
    path = write_table(tmp_path / "a.parquet", described, SCHEMA)
    again, schema = read_table(path)
    assert again == described and schema == SCHEMA and schema.digest() == SCHEMA.digest()
    trail = again[0].trail
    assert [d["step"] for d in trail if d["field"] == "backpack"] == ["models", "modalities"]
    assert trail[0]["votes"][1] == {"annotator": "b", "value": "adult", "confidence": 0.6} and trail[0]["winner"] == "b"
    assert [f.name for f in tmp_path.iterdir()] == ["a.parquet"]


def test_names_and_texts_that_are_no_unicode_survive(tmp_path):
    name = os.fsdecode(b"\xdcber.jpg")
    answers = {"age": Answer("adult", 0.5), "gender": answer_of({"male": 0.7, "female": 0.2})}
    one = Description("all", name, "rgb", ("A man.",), answers)
    (path,) = write_captions(tmp_path, [one])
    assert read_captions(path) == {portable_name(name): "A man."}
    (again,), _ = read_table(write_table(tmp_path / "a.parquet", [one], SCHEMA))
    assert again.key == portable_name(name) and again.answers == one.answers
    images = [CaptionRequest(name, "rgb", None, "all", "d")]
    write_run(tmp_path / "run.json", SCHEMA, ["m"], Sampling(), images)
    assert read_run(tmp_path / "run.json")[3] == images


JSON = st.recursive(
    st.none() | st.integers(0, 2) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["format", "schema", "models", "sampling", "images"]), JSON)
def test_any_record_of_a_run_is_typed_or_one_named_error(tmp_path, key, value):
    path = tmp_path / "run.json"
    write_run(path, SCHEMA, ["m"], Sampling(), [CaptionRequest("k", "rgb", None, "train", "d")])
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    try:
        _, models, _, images = read_run(path)
    except ValueError as error:
        assert "run.json" in str(error)
    else:
        texts = (*(source.model for source in models), *(i.key for i in images), *(i.digest for i in images))
        assert all(isinstance(text, str) for text in texts)


def test_the_record_of_a_run_is_read_back(tmp_path):
    sources = [Source("a"), Source("b", "systemone"), Source("c", "classifier", "12ab", ("rgb",))]
    run = (SCHEMA, sources, Sampling(2, 0.5, 100), [CaptionRequest("k", "rgb", None, "train", "d")])
    write_run(tmp_path / "run.json", SCHEMA, ["a", *sources[1:]], *run[2:])
    assert read_run(tmp_path / "run.json") == run
    assert json.loads((tmp_path / "run.json").read_text())["models"][0] == "a"


@pytest.mark.parametrize("reader", [read_table, read_run])
def test_other_files_are_named(tmp_path, reader):
    with pytest.raises(FileNotFoundError, match="here"):
        reader(tmp_path / "here")
    (tmp_path / "other").write_text('{"format": 9}')
    with pytest.raises(ValueError, match="other"):
        reader(tmp_path / "other")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    import os

    described = descriptions()
    write_captions(tmp_path, described)
    with (tmp_path / "train_RGB.json").open() as reader:  # a reader keeps the whole old file while a new one comes
        write_captions(tmp_path, described[:1])
        assert len(json.load(reader)) == 2
    write_captions(tmp_path, described)
    before = [f.read_bytes() for f in write_captions(tmp_path, described)]
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_captions(tmp_path, described[:1])
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(
        ["train_RGB.json", "train_TI.json", "test_RGB.json", "test_TI.json"]
    )
    assert (tmp_path / "train_RGB.json").read_bytes() == before[0]
