"""Averages, intervals, comparisons and files."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from nextreid.retrieval import (
    METRICS,
    Identities,
    Protocol,
    Rerank,
    RetrievalResult,
    compare,
    get_protocol,
    load_result,
    rank,
)


def result_of(ap, pid, first=None, keys=None, **kwargs):
    ap = np.asarray(ap, float)
    first = np.where(np.isnan(ap), 0, 1) if first is None else np.asarray(first)
    protocol = kwargs.pop("protocol", get_protocol("camera"))
    return RetrievalResult(ap, ap / 2, first, np.asarray(pid), protocol, keys, **kwargs)


def random_result(seed, shift=0.0, num_ids=40):
    rng = np.random.default_rng(seed)
    pid = rng.integers(0, num_ids, 400)
    ap = np.clip(rng.random(num_ids)[pid] * 0.5 + rng.random(400) * 0.3 + shift, 0, 1)
    return result_of(ap, pid)


def test_to_dict_is_plain_and_complete():
    rng = np.random.default_rng(0)
    ids = [Identities(rng.integers(0, 3, n), rng.integers(0, 3, n)) for n in (20, 30)]
    result = rank(rng.standard_normal((20, 8)), rng.standard_normal((30, 8)), *ids, "camera")
    summary = result.to_dict()
    assert list(summary) == [
        *("mAP", "rank-1", "rank-5", "rank-10", "mINP", "queries", "valid_queries", "protocol"),
        *("protocol_details", "rerank"),
    ]
    assert json.loads(json.dumps(summary)) == summary
    assert summary["protocol"] == "camera" and summary["protocol_details"] == get_protocol("camera").to_dict()
    assert result.cmc.shape == (50,) and (np.diff(result.cmc) >= 0).all() and result.cmc[-1] == 1
    assert "protocol camera" in str(result) and str(result) in repr(result) and len(repr(result)) < 300
    for metric in METRICS:
        assert np.nanmean(result.per_query(metric)) == result.metric(metric) == summary[metric]
    assert result.metrics == {name: summary[name] for name in METRICS}
    for metric in ("map", "rank-0", "rank-x", "rank"):
        with pytest.raises(ValueError, match="unknown metric"):
            result.per_query(metric)


def test_bootstrap_draws_whole_identities():
    """Against a loop that draws identities and joins their queries."""
    result = random_result(1)
    found = result.bootstrap(samples=4000, level=0.9)
    rng = np.random.default_rng(5)
    means = []
    for _ in range(4000):
        drawn = rng.choice(np.unique(result.pid), 40)
        means.append(np.concatenate([result.ap[result.pid == pid] for pid in drawn]).mean())
    low, high = np.quantile(means, [0.05, 0.95])
    assert found.value == result.mAP and found.identities == 40
    assert found.low == pytest.approx(low, abs=0.004) and found.high == pytest.approx(high, abs=0.004)
    # queries of one identity are alike, so an interval over queries would be far too narrow
    alone = result_of(result.ap, np.arange(400)).bootstrap(samples=4000, level=0.9)
    assert found.high - found.low > 1.5 * (alone.high - alone.low)
    assert result.bootstrap(seed=3) == result.bootstrap(seed=3) != result.bootstrap(seed=4)


def test_bootstrap_leaves_out_queries_without_a_match():
    whole, holes = random_result(2), random_result(2)
    padded = result_of(np.append(holes.ap, np.full(50, np.nan)), np.append(holes.pid, np.arange(1000, 1050)))
    a, b = padded.bootstrap(), whole.bootstrap()
    assert (a.low, a.high, a.identities) == (b.low, b.high, 40) and a.value == pytest.approx(b.value, abs=1e-15)
    for change in ({"samples": 0}, {"level": 1.0}):
        with pytest.raises(ValueError, match="must"):
            whole.bootstrap(**change)
    with pytest.raises(ValueError, match="no query has a valid match"):
        result_of([np.nan], [1]).bootstrap()


def test_compare_by_hand():
    """Three identities, all better by 0.1: of the 8 equally likely signs, 2 give so large a difference."""
    a = result_of([0.2, 0.4, 0.6], [1, 2, 3])
    b = result_of([0.3, 0.5, 0.7], [1, 2, 3])
    found = compare(a, b, samples=20_000)
    assert found.p_value == pytest.approx(0.25, abs=0.02)
    assert found.difference.value == pytest.approx(0.1)
    assert (found.a, found.b) == (a.mAP, b.mAP)
    assert compare(a, a).p_value == 1 and compare(a, a).difference.low == 0


def test_compare_takes_identities_as_units():
    """Ten queries that always fail together are one piece of evidence."""
    a, b = result_of([0.2] * 10, [1] * 10), result_of([0.9] * 10, [1] * 10)
    assert compare(a, b).p_value == 1
    assert compare(result_of(a.ap, np.arange(10)), result_of(b.ap, np.arange(10))).p_value < 0.01


def test_compare_is_calibrated():
    """Two runs that differ by chance alone are called different about as often as the level says."""
    rng = np.random.default_rng(0)
    pid = np.repeat(np.arange(25), 4)
    p_values = []
    for seed in range(200):
        base = rng.random(100)
        a, b = base + 0.1 * rng.standard_normal(25)[pid], base + 0.1 * rng.standard_normal(25)[pid]
        p_values.append(compare(result_of(a, pid), result_of(b, pid), samples=400, seed=seed).p_value)
    assert 0.05 < np.mean(np.array(p_values) < 0.1) < 0.16


def test_compare_rejects_other_queries():
    a = result_of([0.2, 0.4], [1, 2], keys=("x", "y"))
    for other in (
        result_of([0.2], [1]),
        result_of([0.2, 0.4], [2, 1]),
        result_of([0.2, 0.4], [1, 2], keys=("x", "z")),
    ):
        with pytest.raises(ValueError, match="different queries"):
            compare(a, other)
    with pytest.raises(ValueError, match="one rule"):
        compare(a, result_of([0.2, 0.4], [1, 2], protocol=get_protocol("scene")))
    with pytest.raises(ValueError, match="one rule"):
        compare(a, result_of([0.2, np.nan], [1, 2]))


@pytest.mark.parametrize("rerank", [None, Rerank(7, 3, 0.1)])
@pytest.mark.parametrize("keys", [None, ("ä", "b", "c")])
def test_files_come_back(tmp_path, keys, rerank):
    protocol = Protocol("custom", "scene", query_modalities=("tir",), ties="pessimistic")
    result = result_of([0.1, np.nan, 1 / 3], [4, 5, 6], keys=keys, rerank=rerank, protocol=protocol)
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"an older file")
    result.save(path)
    again = load_result(path)
    for name in ("ap", "inp", "first", "pid"):
        np.testing.assert_array_equal(getattr(again, name), getattr(result, name))
        assert getattr(again, name).dtype == getattr(result, name).dtype
    assert (again.protocol, again.keys, again.rerank) == (protocol, keys, rerank)
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_other_files_are_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        load_result(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("no tensors")
    save_file({"ap": np.zeros(1)}, tmp_path / "tensors", metadata={"format": "pt"})
    for name in ("text", "tensors"):
        with pytest.raises(ValueError, match="no retrieval result"):
            load_result(tmp_path / name)


def test_joining_needs_one_provenance():
    a = result_of([0.1], [1])
    with pytest.raises(ValueError, match="no part"):
        RetrievalResult.concat([])
    with pytest.raises(ValueError, match="computed differently"):
        RetrievalResult.concat([a, result_of([0.1], [1], rerank=Rerank())])


def test_without_a_valid_query_every_metric_is_none(tmp_path, caplog):
    result = RetrievalResult.concat([result_of([np.nan], [1]), result_of([np.nan], [-1])])
    assert "2 of 2 queries have no valid match" in caplog.text
    assert result.mAP is result.mINP is result.metric("rank-3") is None
    assert set(result.metrics.values()) == {None} and np.isnan(result.cmc).all()
    described = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (described["queries"], described["valid_queries"], described["mAP"]) == (2, 0, None)
    assert "1 have an unknown identity" in described["hint"] and "camid" in described["hint"]
    assert "none of 2 queries has a valid match (protocol camera)" in str(result)
    result.save(tmp_path / "r.safetensors")
    assert load_result(tmp_path / "r.safetensors").metrics == result.metrics
    for statistic in (result.bootstrap, lambda: compare(result, result)):
        with pytest.raises(ValueError, match="valid match"):
            statistic()
