"""Every subset of modalities: the same numbers as one evaluation each, from one decoding and one embedding."""

import logging
from dataclasses import replace

import pytest
import torch

import nextreid.data.loader as loader
from nextreid.engine import Condition, EmbedOptions, embed_samples, evaluate, modality_matrix
from nextreid.engine.evaluation import subsets
from nextreid.retrieval import get_protocol

ALL = ("rgb", "nir", "tir")


def same(a, b):
    left, right = a.to_dict(), b.to_dict()
    for row in (left, right):
        row.pop("seconds")
    assert left == right
    assert a.result.ap.tolist() == b.result.ap.tolist()


def test_there_are_seven_subsets_of_three():
    assert [len(s) for s in subsets(ALL)] == [1, 1, 1, 2, 2, 2, 3] and len(set(subsets(ALL))) == 7
    assert subsets(("a",)) == [("a",)]


@pytest.mark.parametrize("text", [True, False])
def test_every_cell_is_an_evaluation_with_the_rest_missing(build, dataset, text):
    model = build(num_classes=6)
    cells = modality_matrix(model, dataset, text=text, options=EmbedOptions(7))
    assert len(cells) == 7 and [cell.missing for cell in cells][-1] == ()
    for cell in cells:
        same(cell, evaluate(model, dataset, text=text, missing=cell.missing, options=EmbedOptions(7)))
    assert len({cell.result.mAP for cell in cells}) > 4


def test_the_cross_matrix_is_every_subset_against_every_one(build, dataset):
    model = build(num_classes=6)
    cells = modality_matrix(model, dataset, cross=True, options=EmbedOptions(18))
    assert len(cells) == 49
    names = [cell.result.protocol.name for cell in cells]
    assert len(set(names)) == 49
    assert names[0] == "camera:rgb>rgb" and names[-1] == "camera:rgb+nir+tir>rgb+nir+tir"
    for name in ("camera:tir>rgb", "camera:rgb+tir>nir", "camera:rgb>rgb+nir+tir", "camera:nir+tir>nir+tir"):
        cell = cells[names.index(name)]
        assert cell.result.protocol == get_protocol(name) and cell.missing == ()
        alone = evaluate(model, dataset, protocol=name, options=EmbedOptions(18))
        assert cell.result.mAP == pytest.approx(alone.result.mAP, abs=1e-6)
        assert cell.to_dict()["protocol_details"]["query_modalities"] == list(cell.result.protocol.query_modalities)


def test_an_image_is_decoded_and_encoded_once(build, dataset, monkeypatch):
    opened, real = [], loader.SampleDataset.__getitem__
    monkeypatch.setattr(
        loader.SampleDataset, "__getitem__", lambda self, *item: opened.append(item) or real(self, *item)
    )
    model = build("baseline_tiny")
    forwards = []
    model.image_tower.register_forward_pre_hook(lambda _, args: forwards.append(len(args[0])))
    modality_matrix(model, dataset, cross=True)
    assert len(opened) == len(dataset.gallery) and sum(forwards) == len(dataset.gallery)


def test_a_sample_with_nothing_to_show_is_left_out_and_counted(build, dataset, caplog):
    lone = tuple(replace(s, images=(s.images[0], None, None)) if i < 2 else s for i, s in enumerate(dataset.query))
    holes = replace(dataset, query=lone, gallery=lone)
    model = build("baseline_tiny")
    cells = {cell.missing: cell for cell in modality_matrix(model, holes, options=EmbedOptions(4))}
    counts = {missing: cell.left_out for missing, cell in cells.items()}
    assert counts == {m: 0 if "rgb" not in m else 4 for m in counts} and len(counts) == 7
    thermal = cells["rgb", "nir"]
    assert thermal.result.num_query == len(lone) - 2 and thermal.to_dict()["left_out"] == 4
    kept = replace(holes, query=lone[2:], gallery=lone[2:])
    assert thermal.result.mAP == pytest.approx(evaluate(model, kept, missing=("rgb", "nir")).result.mAP, abs=1e-6)
    none = tuple(replace(s, images=(s.images[0], s.images[1], None)) for s in dataset.query)
    with caplog.at_level(logging.WARNING):
        assert len(modality_matrix(model, replace(dataset, query=none, gallery=none))) == 6
    assert "camera:tir>tir is left out" in caplog.text


def test_a_protocol_that_fixes_what_is_shown_is_rejected(build, dataset):
    with pytest.raises(ValueError, match=r"'camera:tir>rgb' fixes the modalities .* such as 'camera'"):
        modality_matrix(build("baseline_tiny"), dataset, protocol="camera:tir>rgb")


# What query and gallery show


def test_query_and_gallery_show_what_the_protocol_gives_them(build, dataset):
    """Thermal queries, colour gallery: both embedded by hand, compared by hand."""
    model = build(num_classes=6)
    report = evaluate(model, dataset, protocol="camera:tir>rgb+nir", options=EmbedOptions(9))
    query = embed_samples(model, dataset.query, Condition(modalities=("tir",)), EmbedOptions(9))
    gallery = embed_samples(model, dataset.gallery, Condition(modalities=("rgb", "nir")), EmbedOptions(9))
    size = model.embed_dim  # groups outermost, then rgb, nir, tir
    thermal = [row.view(-1, 3, size)[:, 2].flatten() for row in query]
    colour = [(row.view(-1, 3, size)[:, 0] + row.view(-1, 3, size)[:, 1]).flatten() / 2 for row in gallery]
    query, gallery = torch.stack(thermal), torch.stack(colour)
    query, gallery = (torch.nn.functional.normalize(side.double(), dim=1) for side in (query, gallery))
    precisions = []
    for i, q in enumerate(dataset.query):
        others = [j for j, g in enumerate(dataset.gallery) if (g.pid, g.camid) != (q.pid, q.camid)]
        hits = [dataset.gallery[j].pid == q.pid for j in sorted(others, key=lambda j: -float(query[i] @ gallery[j]))]
        at = [rank for rank, hit in enumerate(hits, 1) if hit]
        precisions.append(sum(n / rank for n, rank in enumerate(at, 1)) / len(at))
    assert report.result.mAP == pytest.approx(sum(precisions) / len(precisions), abs=1e-6)
    assert report.samples == 2 * len(dataset.query) and report.to_dict()["averaged"]
    alike = evaluate(model, dataset, protocol="camera:tir>tir")
    assert not alike.averaged and "averaged" not in alike.to_dict()
    with pytest.raises(ValueError, match="behind the neck"):
        evaluate(model, dataset, protocol=replace(report.result.protocol, feature="after_neck"))
    assert report.to_dict()["protocol"] == "camera:tir>rgb+nir"


def test_a_sample_is_encoded_once_and_ranked_once_for_each_set_that_it_shows(build, dataset):
    model, seen = build("baseline_tiny"), []
    model.image_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))

    def views(protocol, data=dataset, missing=()):
        seen.clear()
        report = evaluate(model, data, protocol=protocol, missing=missing)
        assert sum(seen) == len(data.query)
        return report.samples

    n = len(dataset.query)
    assert views("camera") == views("camera:rgb>rgb") == views("camera:rgb+tir>rgb", missing=("tir",)) == n
    bare = tuple(replace(sample, captions=()) for sample in dataset.query)
    silent = replace(dataset, query=bare, gallery=bare)
    assert views("camera:rgb>rgb+tir") == views("camera:rgb>rgb+tir", silent) == 2 * n
    # A sample that never had a thermal image shows the same on both sides.
    lone = (replace(dataset.query[0], images=(*dataset.query[0].images[:2], None), captions=()), *dataset.query[1:])
    assert views("camera:rgb>rgb+tir", replace(dataset, query=lone, gallery=lone)) == 2 * n - 1
    # Words about an image that is not there are something to show, too.
    told = (replace(dataset.query[0], images=(*dataset.query[0].images[:2], None)), *dataset.query[1:])
    assert views("camera:rgb>rgb+tir", replace(dataset, query=told, gallery=told)) == 2 * n


def test_modalities_that_cannot_be_shown_are_named(build, dataset):
    model = build("baseline_tiny")
    with pytest.raises(ValueError, match=r"'camera:uv>rgb' shows 'uv' in the query; the dataset has: rgb, nir"):
        evaluate(model, dataset, protocol="camera:uv>rgb")
    with pytest.raises(ValueError, match=r"shows tir in the gallery, and without tir nothing is left"):
        evaluate(model, dataset, protocol="camera:rgb>tir", missing=("tir",))
