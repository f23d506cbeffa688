from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextreid.data import ReIDDataset, Sample, split_identities
from nextreid.data.split import count_matches, with_match
from nextreid.retrieval import Identities, Protocol, get_protocol, rank

IMAGE = np.zeros((2, 2), np.uint8)


def sample(key: object, pid: int, camid: int = -1, sceneid: int = -1) -> Sample:
    return Sample(f"{key}", pid, camid, sceneid, (IMAGE,))


def labels(samples: Sequence[Sample]) -> Identities:
    return Identities(*(np.array([getattr(s, name) for s in samples]) for name in ("pid", "camid", "sceneid")))


def valid_by_retrieval(data: ReIDDataset, queries: tuple[Sample, ...], rule: str) -> int:
    """How many queries the library's own evaluation finds a match for."""
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(len(s), 3, generator=generator) for s in (queries, data.gallery))
    keys = {"query_keys": [s.key for s in queries], "gallery_keys": [s.key for s in data.gallery]}
    result = rank(one, two, labels(queries), labels(data.gallery), get_protocol(rule), **keys)
    return int(result.to_dict()["valid_queries"])


rows = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 2), st.integers(-1, 2)), min_size=1, max_size=12)


@given(rows, rows, st.sets(st.integers(0, 11)), st.booleans(), st.sampled_from(["camera", "scene", "none"]))
def test_matches_are_those_of_the_ranking(gallery, query, shared, relabelled, rule) -> None:
    """Against a loop over pairs, and against the queries that the library's own evaluation counts as valid."""
    entries = [sample(f"g{i}", *row) for i, row in enumerate(gallery)]
    queries = [sample(f"q{i}", *row) for i, row in enumerate(query)]
    for i in shared & set(range(min(len(entries), len(queries)))):
        # the entry is the query itself, under its labels or under others of the same identity
        queries[i] = sample(f"g{i}", entries[i].pid, *query[i][1:]) if relabelled else entries[i]
    counts = count_matches(queries, entries, rule)
    label = {"camera": "camid", "scene": "sceneid", "none": "key"}[rule]
    for q, count in zip(queries, counts, strict=True):
        others = [g for g in entries if g.pid == q.pid and g.key != q.key]
        assert count == sum(getattr(g, label) != getattr(q, label) for g in others)
    valid = with_match(queries, entries, rule)
    assert [q.key for q in valid] == [q.key for q, count in zip(queries, counts, strict=True) if count]
    if valid:
        keys = {"query_keys": [q.key for q in queries], "gallery_keys": [g.key for g in entries]}
        embeddings = [np.eye(16)[: len(samples)] for samples in (queries, entries)]
        result = rank(*embeddings, labels(queries), labels(entries), Protocol("p", rule), **keys)
        assert result.num_valid == len(valid)


def test_a_key_of_another_identity_is_not_the_query_itself() -> None:
    gallery = [sample("a", 1), sample("b", 1), sample("c", 2)]
    assert count_matches([sample("c", 1)], gallery, "none") == [2]


people = st.lists(st.tuples(st.integers(-1, 6), st.integers(-1, 2), st.integers(-1, 2)), max_size=24)


@given(people, st.sampled_from(["camera", "scene", "none"]), st.floats(0, 0.99), st.integers(0, 9), st.randoms())
def test_every_query_has_a_match_and_no_identity_is_in_train_and_test(rows, rule, train, seed, random) -> None:
    samples = [sample(i, *row) for i, row in enumerate(rows)]
    known = [s for s in samples if s.pid >= 0]
    able = {s.pid for s in with_match(known, known, rule)}
    if not able:
        with pytest.raises(ValueError, match="no query could ever match"):
            split_identities(samples, modalities=("rgb",), train=train, rule=rule, seed=seed)
        return
    data = split_identities(samples, modalities=("rgb",), train=train, rule=rule, seed=seed)
    assert data.protocol == rule and data.query
    assert not {s.pid for s in data.train} & {s.pid for s in data.gallery}
    assert sorted(s.key for s in (*data.train, *data.gallery)) == sorted(s.key for s in known)
    assert {id(s) for s in data.query} <= {id(s) for s in data.gallery}
    assert valid_by_retrieval(data, data.query, rule) == len(data.query)
    # and no more could be queries
    assert valid_by_retrieval(data, data.gallery, rule) == len(data.query)
    pids = {s.pid for s in data.gallery}
    assert abs(len(pids & able) - (1 - train) * len(able)) <= 0.5 + (len(pids & able) == 1)
    assert abs(len(pids - able) - (1 - train) * len({s.pid for s in known} - able)) <= 0.5
    random.shuffle(samples)
    assert split_identities(samples, modalities=("rgb",), train=train, rule=rule, seed=seed) == data


def test_seeds_draw_other_identities_and_distractors_are_named() -> None:
    samples = [sample(f"{pid:02d}_{cam}", pid, cam) for pid in range(20) for cam in range(1 + (pid < 14))]
    samples.append(sample("new", -1, 0))
    drawn = [split_identities(samples, modalities=("rgb",), seed=seed, name="mine") for seed in range(4)]
    assert len({d.digest() for d in drawn}) == 4
    data = drawn[0]
    assert (data.name, data.modalities, data.object_type) == ("mine", ("rgb",), "object")
    assert len({s.pid for s in data.gallery}) == len({s.pid for s in data.train}) == 10
    lone = sorted({s.pid for s in data.gallery} & set(range(14, 20)))
    assert len(lone) == 3 and data.notes == (
        "1 samples of unknown identity (pid -1) left out",
        f"3 of 10 test identities have one camera: distractors only: {', '.join(map(str, lone))}",
    )
    assert split_identities(samples, modalities=("rgb",), train=0).train == ()


def test_settings_and_samples_that_do_not_fit_are_rejected() -> None:
    pair = [sample("a", 1, 0), sample("b", 1, 1)]
    for train in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"train is the share .* in \[0, 1\)"):
            split_identities(pair, modalities=("rgb",), train=train)
    with pytest.raises(ValueError, match="rule must be one of camera, scene, none; got 'view'"):
        split_identities(pair, modalities=("rgb",), rule="view")
    with pytest.raises(ValueError, match="1 keys occur more than once, such as 'a'"):
        split_identities([*pair, sample("a", 2)], modalities=("rgb",))
    with pytest.raises(ValueError, match=r"seen by two scenes.*sceneid; -1 everywhere counts as one.*rule='none'"):
        split_identities(pair, modalities=("rgb",), rule="scene")
    with pytest.raises(ValueError, match="has a second one of its identity"):
        split_identities(pair[:1], modalities=("rgb",), rule="none")
