import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nextreid.engine import Condition, EmbedOptions, embed_samples, evaluate, evaluate_conditions
from nextreid.retrieval import get_protocol


def tensor_of(sample):
    images = np.stack([np.zeros((64, 32, 3), np.uint8) if i is None else i for i in sample.images])
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def one_by_one(model, samples, text):
    """Each sample alone through the model, as the definition says."""
    model.eval()
    rows = []
    with torch.no_grad():
        for sample in samples:
            present = torch.tensor([[image is not None for image in sample.images]])
            prepared = model.prepare_text([sample.captions]) if text else None
            rows.append(model.pool(model.forward_features(tensor_of(sample)[None], prepared, present))[0])
    return torch.stack(rows)


def mean_average_precision(embeddings, samples, same_camera=False):
    unit = F.normalize(embeddings.double(), dim=1)
    precisions = []
    for i, query in enumerate(samples):
        others = [
            j
            for j, s in enumerate(samples)
            if (j != i if same_camera else (s.pid, s.camid) != (query.pid, query.camid))
        ]
        order = sorted(others, key=lambda j: -float(unit[i] @ unit[j]))
        hits = np.array([samples[j].pid == query.pid for j in order])
        ranks = np.flatnonzero(hits) + 1
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    return float(np.mean(precisions))


def test_conditions_share_one_pass_of_the_tower_and_are_evaluations_of_their_own(build, dataset):
    model, seen = build(num_classes=6), []
    options = EmbedOptions(7)
    conditions = [Condition(), Condition(text=False), Condition(modalities=("nir", "rgb")), Condition(False, ("tir",))]
    model.image_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    reports = evaluate_conditions(model, dataset, conditions, options=options)
    assert sum(seen) == len(dataset.gallery) and len(repr(reports[0])) < 500
    missing = [(), (), ("tir",), ("rgb", "nir")]
    for report, condition, hidden in zip(reports, conditions, missing, strict=True):
        assert (report.text, report.missing) == (condition.text, hidden)
        alone = evaluate(model, dataset, text=condition.text, missing=hidden, options=options)
        assert alone.result.ap.tolist() == report.result.ap.tolist()
        assert {**alone.to_dict(), "seconds": 0} == {**report.to_dict(), "seconds": 0}


def test_a_named_embedding_is_ranked_and_reported(build, dataset):
    model = build("baseline_tiny")
    model.embeddings = {"fused": model.num_features, "squares": model.num_features}
    tokens = model.forward_tokens
    model.forward_tokens = lambda *given: {**(f := tokens(*given)), "squares": f["cls"].flatten(1).square()}
    options = EmbedOptions(embedding="squares")
    report = evaluate(model, dataset, options=options)
    assert report.to_dict()["embedding"] == "squares" and report.result.mAP != evaluate(model, dataset).result.mAP
    with pytest.raises(ValueError, match="'text'; there are: fused, squares"):
        embed_samples(model, dataset.query, options=EmbedOptions(embedding="text"))


@pytest.mark.parametrize("text", [True, False])
def test_the_numbers_are_those_of_a_naive_loop(build, dataset, text):
    model = build(num_classes=6)
    report = evaluate(model, dataset, text=text, options=EmbedOptions(7))
    expected = mean_average_precision(one_by_one(model, dataset.query, text), dataset.query)
    assert report.result.mAP == pytest.approx(expected, abs=1e-6)
    assert (report.text, report.missing, report.samples) == (text, (), len(dataset.query))


def test_embeddings_keep_order_and_do_not_depend_on_the_batch(build, dataset):
    model = build()
    embeddings = embed_samples(model, dataset.query, options=EmbedOptions(5))
    assert embeddings.dtype == torch.float32 and embeddings.shape == (len(dataset.query), model.num_features)
    torch.testing.assert_close(embeddings, one_by_one(model, dataset.query, True), rtol=1e-4, atol=1e-5)


def test_a_sample_in_both_splits_is_embedded_once(build, dataset):
    model = build("baseline_tiny")
    seen = []
    model.image_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    query = dataset.query[:5]
    report = evaluate(model, replace(dataset, query=query), options=EmbedOptions(4))
    assert sum(seen) == len(dataset.gallery)
    assert report.samples == len(dataset.gallery) and report.result.num_query == 5


def test_missing_modalities_are_absent_not_black(build, dataset):
    model = build("baseline_tiny")
    embeddings = embed_samples(model, dataset.query, Condition(modalities=("nir",)))
    hidden = [replace(s, images=(None, s.images[1], None)) for s in dataset.query]
    torch.testing.assert_close(embeddings, one_by_one(model, hidden, False), rtol=1e-4, atol=1e-5)
    black = [replace(s, images=tuple(i * (k == 1) for k, i in enumerate(s.images))) for s in dataset.query]
    assert not torch.allclose(embeddings, one_by_one(model, black, False))
    report = evaluate(model, dataset, missing=("rgb",))
    assert report.missing == ("rgb",) and report.result.mAP != evaluate(model, dataset).result.mAP


def test_the_report_says_whether_text_was_read(build, dataset):
    bare = replace(
        dataset, **{n: tuple(replace(s, captions=()) for s in getattr(dataset, n)) for n in ("query", "gallery")}
    )
    assert not evaluate(build(), bare).text
    assert not evaluate(build("baseline_tiny"), dataset).text
    row = json.loads(json.dumps(evaluate(build(), dataset, missing=("nir",)).to_dict()))
    assert row["text"] is True and row["missing"] == ["nir"] and row["protocol"] == "camera"
    assert {"mAP", "rank-1", "mINP", "queries", "samples", "seconds"} <= row.keys()


def test_the_protocol_can_be_another_one(build, dataset):
    model = build("baseline_tiny", num_classes=6).eval()
    camera, none = evaluate(model, dataset), evaluate(model, dataset, protocol="none")
    assert (camera.result.protocol.name, none.result.protocol.name) == ("camera", "none")
    alone = one_by_one(model, dataset.query, False)
    assert none.result.mAP == pytest.approx(mean_average_precision(alone, dataset.query, same_camera=True), abs=1e-6)
    with pytest.raises((KeyError, ValueError), match="market"):
        evaluate(model, dataset, protocol="market")


def test_the_feature_of_the_protocol_is_ranked(build, dataset):
    model = build("baseline_tiny", num_classes=6).eval()
    (neck,) = model.necks
    neck.norm.running_mean.uniform_(-2, 2)
    plain = embed_samples(model, dataset.query)
    after = embed_samples(model, dataset.query, options=EmbedOptions(after_neck=True))
    expected = neck.norm(plain).detach()
    torch.testing.assert_close(after, expected)
    behind = replace(get_protocol("camera"), feature="after_neck")
    map_behind = evaluate(model, dataset, protocol=behind).result.mAP
    assert map_behind == pytest.approx(mean_average_precision(expected, dataset.query), abs=1e-6)
    assert map_behind != evaluate(model, dataset).result.mAP


def test_the_camera_reaches_a_model_that_knows_cameras(build, dataset):
    model = build("baseline_tiny", num_cameras=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("camera"):
                parameter.normal_()
    unknown = embed_samples(model, [replace(s, camid=-1) for s in dataset.query])
    known = embed_samples(model, dataset.query)
    cameras = torch.tensor([sample.camid for sample in dataset.query])
    images = torch.stack([tensor_of(sample) for sample in dataset.query])
    torch.testing.assert_close(known, model.eval()(images, camid=cameras).detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(known, unknown)


def test_model_and_global_generators_are_left_as_they_were(build, dataset):
    model = build("baseline_tiny", num_classes=6).train()
    model.necks.eval()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(model, dataset)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="no_such"):
        evaluate(model, replace(dataset, gallery=(*dataset.gallery, bad_image(dataset.gallery[0]))))
    assert [module.training for module in model.modules()] == modes


def bad_image(sample):
    return replace(sample, key="bad", images=(Path("no_such.jpg"), *sample.images[1:]))


def test_what_cannot_be_evaluated_is_named(build, dataset):
    model = build("baseline_tiny")
    with pytest.raises(ValueError, match=r"'tints' has no gallery"):
        evaluate(model, replace(dataset, gallery=()))
    with pytest.raises(ValueError, match=r"'uv'"):
        evaluate(model, dataset, missing=("uv",))
    with pytest.raises(ValueError, match="leave at least one"):
        evaluate(model, dataset, missing=("rgb", "nir", "tir"))
    with pytest.raises(ValueError, match=r"rgb, nir, tir but.*modalities="):
        evaluate(model, replace(dataset, modalities=("rgb", "nir")))
    with pytest.raises(ValueError, match="no sample"):
        embed_samples(model, [])
    other = replace(dataset.query[0], images=dataset.query[1].images)
    with pytest.raises(ValueError, match=rf"'{other.key}' names two different"):
        evaluate(model, replace(dataset, query=(other,)))
    lonely = replace(dataset, query=tuple(replace(s, camid=0) for s in dataset.query))
    lonely = replace(lonely, gallery=lonely.query)
    report = evaluate(model, lonely)
    assert report.result.mAP is None and "no valid query" in repr(report)
    row = report.to_dict()
    assert (row["rank-1"], row["valid_queries"], row["queries"]) == (None, 0, len(lonely.query))
    assert "another camera" in row["hint"] and row["protocol"] == lonely.protocol
    unlabelled = replace(lonely, query=tuple(replace(s, pid=-1) for s in lonely.query))
    assert "unknown identity" in evaluate(model, replace(unlabelled, gallery=unlabelled.query)).result.hint
