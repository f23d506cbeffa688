import csv
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nextreid._files import read_tensors
from nextreid.engine import Condition, EmbedOptions, embed_samples, extract, load_embeddings
from nextreid.engine.provenance import weights_digest


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_of_both_files_belong_together(build, dataset, tmp_path):
    model = build()
    samples = [replace(dataset.query[0], images=(*dataset.query[0].images[:2], None)), *dataset.query[1:4]]
    done = extract(model, samples, tmp_path / "out", options=EmbedOptions(3))
    rows = rows_of(done.index)
    assert [row["key"] for row in rows] == [s.key for s in samples]
    assert [int(row["row"]) for row in rows] == [0, 1, 2, 3]
    assert [row["present"] for row in rows] == ["rgb+nir", *["rgb+nir+tir"] * 3]
    assert [(int(r["pid"]), int(r["camid"]), int(r["sceneid"])) for r in rows] == [
        (s.pid, s.camid, s.sceneid) for s in samples
    ]
    named = extract(model, samples, tmp_path / "named", label_names={"camid": {0: "0001", 1: "=gate"}})
    expected = [{0: "0001", 1: "=gate"}.get(s.camid, str(s.camid)) for s in samples]
    assert [row["camid"] for row in load_embeddings(named.index.parent)[1]] == expected
    written = load_file(done.embeddings)["embedding"]
    assert written.shape == (done.samples, done.dim) == (4, model.num_features) and written.dtype == torch.float32
    expected = embed_samples(model, samples, options=EmbedOptions(3))
    torch.testing.assert_close(written, expected / expected.norm(dim=1, keepdim=True))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["embeddings.safetensors", "index.csv"]


def test_the_header_says_how_embeddings_were_made(build, dataset, tmp_path):
    done = extract(build(), dataset.query[:2], tmp_path / "a", text=False, normalize=False)
    tensors, metadata = read_tensors(done.embeddings)
    assert metadata == {
        "model": "next_tiny",
        "modalities": ["rgb", "nir", "tir"],
        "text": False,
        "normalized": False,
        "after_neck": False,
        "digest": weights_digest(build()),
        "samples": 2,
        "index_sha256": hashlib.sha256(done.index.read_bytes()).hexdigest(),
    }
    torch.testing.assert_close(tensors["embedding"], embed_samples(build(), dataset.query[:2], Condition(text=False)))
    _, metadata = read_tensors(extract(build("baseline_tiny"), dataset.query[:2], tmp_path / "b").embeddings)
    assert (metadata["model"], metadata["text"], metadata["normalized"]) == ("baseline_tiny", False, True)


def write_images(root: Path, names=("a", "b")):
    for folder in ("rgb", "nir"):
        (root / folder).mkdir(parents=True)
        for i, name in enumerate(names):
            pixels = np.full((20, 10, 3), 40 * i + 20, np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{name}.png")


def test_a_folder_and_a_manifest_of_the_same_images_agree(build, tmp_path):
    write_images(tmp_path / "images")
    (tmp_path / "list.csv").write_text(
        "rgb,nir,tir,pid\nimages/rgb/a.png,images/nir/a.png,,5\nimages/rgb/b.png,images/nir/b.png,,-1\n"
    )
    model = build("baseline_tiny")
    by_folder = extract(model, tmp_path / "images", tmp_path / "x")
    by_list = extract(model, str(tmp_path / "list.csv"), str(tmp_path / "y"))
    assert [row["present"] for row in rows_of(by_folder.index)] == ["rgb+nir", "rgb+nir"]
    assert [row["pid"] for row in rows_of(by_list.index)] == ["5", "-1"]
    assert torch.equal(load_file(by_folder.embeddings)["embedding"], load_file(by_list.embeddings)["embedding"])


def test_embeddings_are_not_overwritten_unasked(build, dataset, tmp_path):
    model = build("baseline_tiny")
    extract(model, dataset.query[:2], tmp_path)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        extract(model, dataset.query[:3], tmp_path)
    assert extract(model, dataset.query[:3], tmp_path, overwrite=True).samples == 3
    assert len(rows_of(tmp_path / "index.csv")) == 3 and (tmp_path / "mine.txt").read_text() == "keep"


def test_what_cannot_be_embedded_is_named_and_nothing_written(build, dataset, tmp_path):
    model, out = build("baseline_tiny"), tmp_path / "out"
    empty = replace(dataset.query[0], images=(None, None, None))
    with pytest.raises(ValueError, match=f"no image: '{empty.key}'"):
        extract(model, [empty], out)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    broken = replace(dataset.query[0], key="broken one", images=(tmp_path / "broken.png", None, None))
    with pytest.raises(ValueError, match=r"broken\.png.*rgb.*'broken one'"):
        extract(model, [broken], out)
    with pytest.raises(ValueError, match="more than one sample"):
        extract(model, [dataset.query[0]] * 2, out)
    with pytest.raises(ValueError, match="no sample"):
        extract(model, [], out)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        extract(model, tmp_path / "nowhere", out)
    assert not out.exists()


def test_the_two_files_are_read_back_only_as_a_pair(build, dataset, tmp_path):
    model = build("baseline_tiny")
    odd = replace(dataset.query[0], key=os.fsdecode(b"caf\xe9"))
    done = extract(model, [odd, *dataset.query[1:3]], tmp_path / "a")
    embeddings, rows, made = load_embeddings(tmp_path / "a")
    assert torch.equal(embeddings, load_file(done.embeddings)["embedding"]) and made["model"] == "baseline_tiny"
    assert [row["key"] for row in rows] == [odd.key, *(s.key for s in dataset.query[1:3])]
    other = extract(model, dataset.query[1:4], tmp_path / "b")
    index = other.index.read_bytes()
    done.index.replace(other.index)
    with pytest.raises(ValueError, match=r"index\.csv was edited or damaged, or belongs to another"):
        load_embeddings(tmp_path / "b")
    other.index.write_bytes(index)
    load_embeddings(tmp_path / "b")
    other.index.unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.csv"):
        load_embeddings(tmp_path / "b")
