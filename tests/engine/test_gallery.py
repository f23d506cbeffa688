"""Images and words to a gallery and its answers, with a model; the numbers are those of extraction and evaluation."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nextreid
from nextreid import Gallery
from nextreid._files import write_csv, write_tensors
from nextreid.data import SampleDataset, collate
from nextreid.engine import (
    Added,
    add_extraction,
    add_samples,
    create_gallery,
    embed_samples,
    evaluate,
    extract,
    open_gallery,
)
from nextreid.engine.ablations import Condition
from nextreid.engine.embedding import eval_transform
from nextreid.engine.evaluation import identities
from nextreid.models import save_model
from nextreid.retrieval import get_protocol, rank_distances, top_k


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nextreid.create_model("next_tiny")


@pytest.fixture
def gallery(dataset, model, tmp_path):
    with create_gallery(tmp_path / "g", model, words=True) as gallery:
        add_samples(gallery, dataset.gallery, label_names={"pid": {3: "anna"}})
        yield gallery


def test_search_by_images_is_the_ranking_of_their_embeddings(gallery, dataset, model):
    query = dataset.query[:4]
    vectors = [embed_samples(model, samples, Condition(text=False)) for samples in (query, dataset.gallery)]
    stored = F.normalize(vectors[1], dim=1).half()
    index, _ = top_k(vectors[0], stored, identities(query), identities(dataset.gallery), "none", 5)
    given = [dict(zip(dataset.modalities, sample.images, strict=True)) for sample in query]
    hits = gallery.search(given, k=5)
    assert [[hit.entry.key for hit in row] for row in hits] == [[dataset.gallery[i].key for i in row] for row in index]
    assert gallery.search(given[0], k=1)[0].score == pytest.approx(1, abs=1e-3)
    assert gallery.search(query[0].images, k=1)[0].entry.key == query[0].key
    assert {hit.entry.identity for hit in gallery.search(given[0], where={"identity": "anna"})} == {"anna"}


def test_a_missing_modality_gives_the_numbers_of_the_evaluation(dataset, model, tmp_path):
    """Thermal queries in a gallery of colour images, ranked by the gallery's scores."""
    protocol = replace(get_protocol("camera:tir>rgb"), name="thermal")
    report = evaluate(model, dataset, protocol=protocol, text=False)
    colour = [replace(sample, images=(sample.images[0], None, None)) for sample in dataset.gallery]
    with create_gallery(tmp_path / "g", model) as gallery:
        add_samples(gallery, colour)
        hits = gallery.search([{"tir": sample.images[2]} for sample in dataset.query], k=len(colour))
    place = {sample.key: i for i, sample in enumerate(colour)}
    order = np.array([[place[hit.entry.key] for hit in row] for row in hits])
    distances = np.empty(order.shape, np.float32)
    np.put_along_axis(distances, order, np.arange(len(colour), dtype=np.float32)[None], axis=1)
    ids = identities(dataset.query), identities(dataset.gallery)
    keys = {"query_keys": [s.key for s in dataset.query], "gallery_keys": [s.key for s in dataset.gallery]}
    found = rank_distances(distances, *ids, "camera", **keys)
    assert found.mAP == pytest.approx(report.result.mAP, abs=2e-3) and np.array_equal(found.first, report.result.first)
    assert found.mAP < 1, "the case is too easy to tell anything"


def test_words_are_compared_with_the_towers_own_space(gallery, dataset, model):
    texts = ["a red coat", "a person in a blue coat"]
    hits = gallery.search(text=texts, k=3)
    with torch.no_grad():
        samples = SampleDataset(dataset.gallery, eval_transform(model), dataset.modalities)
        images = collate([samples[i] for i in range(len(dataset.gallery))]).images
        joint = F.normalize(model.eval().encode_images(images)["cls"], dim=-1).mean(1)
        words = model.text_tower.encode([model.text_tower.windows(text) for text in texts])
    scores = F.cosine_similarity(words[:, None], joint[None], dim=-1)
    best = scores.topk(3, dim=1)
    assert np.allclose([[hit.score for hit in row] for row in hits], best.values, atol=2e-3)
    assert hits[0][0].entry.key == dataset.gallery[int(best.indices[0, 0])].key
    assert [hit.entry for hit in gallery.search(text=texts[0], k=3)] == [hit.entry for hit in hits[0]]
    with pytest.raises(ValueError, match="an empty text finds nothing"):
        gallery.search(text=" ")


def test_entries_say_what_the_samples_said(gallery, dataset):
    sample, entry = dataset.gallery[0], next(gallery.entries())
    assert (entry.key, entry.identity, entry.camera) == (sample.key, "anna", str(sample.camid))
    assert entry.caption == dict(zip(dataset.modalities, sample.captions, strict=True))
    assert entry.modalities == dataset.modalities and entry.source == {}


def test_known_keys_stop_are_skipped_or_replaced(gallery, dataset):
    some = dataset.gallery[:3]
    with pytest.raises(ValueError, match=r"3 of 3 keys are in gallery .* already"):
        add_samples(gallery, some)
    assert add_samples(gallery, some, known="skip").skipped == 3
    assert add_samples(gallery, some, known="replace").entries == 3 and len(gallery) == len(dataset.gallery)


def test_what_extract_wrote_is_added_if_the_weights_are_the_same(dataset, model, build, tmp_path):
    extract(model, dataset.gallery, tmp_path / "ours", text=False)
    extract(build(seed=1), dataset.gallery, tmp_path / "theirs", text=False)
    with create_gallery(tmp_path / "g", model) as gallery:
        assert add_extraction(gallery, tmp_path / "ours").entries == len(dataset.gallery)
        assert add_extraction(gallery, tmp_path / "ours", known="skip").skipped == len(dataset.gallery)
        with pytest.raises(ValueError, match=r"come from weights of digest '.*', gallery .* is of '"):
            add_extraction(gallery, tmp_path / "theirs", known="replace")
        extract(model, dataset.gallery, tmp_path / "text")
        with pytest.raises(ValueError, match=r"was made with text True, gallery .* is False"):
            add_extraction(gallery, tmp_path / "text")


def write_rows(folder, rows):
    """What `extract` writes, for vectors of no model."""
    folder.mkdir()
    lines = ((i, f"k{i}", i % 1000, 1, -1, "rgb") for i in range(len(rows)))
    write_csv(folder / "index.csv", ("row", "key", "pid", "camid", "sceneid", "present"), lines)
    digest = hashlib.sha256((folder / "index.csv").read_bytes()).hexdigest()
    made = {"model": "m", "text": False, "after_neck": False, "index_sha256": digest}
    write_tensors(folder / "embeddings.safetensors", {"embedding": torch.from_numpy(rows)}, made)
    return folder


def test_a_table_of_many_rows_is_added_whole_or_not_at_all(tmp_path):
    rows = np.random.default_rng(0).standard_normal((10_000, 8)).astype(np.float32)
    good = write_rows(tmp_path / "good", rows)
    rows[-2] = 0
    with Gallery.create(tmp_path / "g", 8, modalities="rgb") as gallery:
        with pytest.raises(ValueError, match="the first at index 9998"):
            add_extraction(gallery, write_rows(tmp_path / "bad", rows))
        assert len(gallery) == len(Gallery(tmp_path / "g")) == 0
        assert add_extraction(gallery, good).identities == 1000 and len(Gallery(tmp_path / "g")) == 10_000
        gallery.delete(key="k9000")
        assert add_extraction(gallery, good, known="skip") == Added(1, 1, 9999)
        assert gallery.search(rows[9000], k=1)[0].entry.key == "k9000"


PROGRAM = """
import sys
from nextreid import Gallery
from nextreid.engine import add_extraction
def peak():  # of this program alone; getrusage counts what the process was before
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
gallery, before = Gallery(sys.argv[1], write=True), peak()
print(add_extraction(gallery, sys.argv[2]).entries, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_a_million_rows_need_little_memory(tmp_path):
    rows = np.random.default_rng(0).standard_normal((1_000_000, 8)).astype(np.float32)
    Gallery.create(tmp_path / "g", 8, modalities="rgb").close()
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "g"), str(write_rows(tmp_path / "rows", rows))]
    added, grown = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert int(added) == len(Gallery(tmp_path / "g")) == 1_000_000
    assert int(grown) < 300 * 1024  # KiB: the keys that are returned, the vectors and the file that they come from


def test_a_gallery_opens_with_its_model_and_no_other(dataset, build, tmp_path):
    save_model(build(num_classes=3), tmp_path / "m")
    create_gallery(tmp_path / "g", tmp_path / "m").close()
    assert open_gallery(tmp_path / "g").about["checkpoint"] == str(tmp_path / "m")
    open_gallery(tmp_path / "g", build()).close()  # other classes, the same embedding
    with pytest.raises(ValueError, match=r"gallery .* is of weights of digest '.*their vectors cannot be compared"):
        open_gallery(tmp_path / "g", build(seed=1))
    with pytest.raises(ValueError, match="is of model 'next_tiny', this is 'baseline_tiny'"):
        open_gallery(tmp_path / "g", "baseline_tiny")
    with pytest.raises(ValueError, match="baseline_tiny has no space that images and words share"):
        create_gallery(tmp_path / "b", build("baseline_tiny"), words=True)
    with pytest.raises(ValueError, match="does not say where its model"):
        create_gallery(tmp_path / "h", build()).close() or open_gallery(tmp_path / "h")
