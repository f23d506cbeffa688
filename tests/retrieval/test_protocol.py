"""Protocols by name, each on a case worked out by hand, rejected values, and the entries of one identity."""

import json

import numpy as np
import pytest
import torch

from nextreid.retrieval import Identities, Protocol, get_protocol, list_protocols, rank_distances
from nextreid.retrieval.protocol import SameIdentity

# published rules: what a query of an identity ignores, and which samples are queries and gallery
PUBLISHED = {
    "rgbnt201": ("camera", "folder test", "folder test"),
    "msvr310": ("scene", "query3", "bounding_box_test"),
    "rgbnt100": ("camera", "folder query", "bounding_box_test"),
    "wmveid863": ("camera", "folder query", "folder test"),
    "rgbn300": ("camera", "folder query", "bounding_box_test"),
    "market1501-mm": ("camera", "folder query", "folder gallery"),
    "synthetic-persons": ("camera", "test identities", "test identities"),
    "synthetic-vehicles": ("camera", "test identities", "test identities"),
    "camera": ("camera", "given", "given"),
    "scene": ("scene", "given", "given"),
    "none": ("none", "given", "given"),
}


def test_all_names_are_listed():
    assert list_protocols() == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rules(name):
    rule = get_protocol(name)
    exclude, query, gallery = PUBLISHED[name]
    assert (rule.name, rule.exclude) == (name, exclude)
    assert query in rule.query_rule and gallery in rule.gallery_rule
    usual = rule.distance, rule.normalize, rule.feature, rule.ties, rule.version
    assert usual == ("cosine", True, "before_neck", "stable", 1)
    assert rule.query_modalities is None and rule.gallery_modalities is None
    assert len(repr(rule)) < 300 and repr(name) in repr(rule)


# A query of identity 1, camera 0, scene 0. Its gallery, from near to far:
#   identity 1, camera 0, scene 5 | 2, 0, 0 | 1, camera 3, scene 0 | 2, 1, 1 | 1, camera 3, scene 5
# camera: the first is ignored; matches stand at 2 and 4 of the four left: AP (1/2 + 2/4) / 2, INP 2/4
# scene: the third is ignored; matches stand at 1 and 4 of the four left: AP (1/1 + 2/4) / 2, INP 2/4
# none: matches stand at 1, 3 and 5: AP (1/1 + 2/3 + 3/5) / 3, INP 3/5
BY_HAND = {"camera": (0.5, 0.5, 2), "scene": (0.75, 0.5, 1), "none": ((1 + 2 / 3 + 3 / 5) / 3, 0.6, 1)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_case_by_hand(name):
    gallery = Identities([1, 2, 1, 2, 1], [0, 0, 3, 1, 3], [5, 0, 0, 1, 5])
    result = rank_distances(np.array([[0.1, 0.2, 0.3, 0.4, 0.5]]), Identities([1], [0], [0]), gallery, name)
    ap, inp, first = BY_HAND[PUBLISHED[name][0]]
    assert result.ap[0] == pytest.approx(ap, abs=1e-15) and result.inp[0] == inp and result.first[0] == first


@pytest.mark.parametrize(("ties", "ap"), [("stable", 1 / 2), ("optimistic", 1), ("pessimistic", 1 / 3)])
def test_tie_rules_by_hand(ties, ap):
    """Three entries at one distance, the match between two others."""
    rule = Protocol("custom", "none", ties=ties)
    result = rank_distances(np.zeros((1, 3)), Identities([7]), Identities([8, 7, 9]), rule)
    assert result.ap[0] == ap
    assert ("ties" in str(result)) == (ties != "stable")


def test_modalities_of_query_and_gallery():
    rule = get_protocol("rgbnt201:tir>rgb")
    assert (rule.name, rule.exclude) == ("rgbnt201:tir>rgb", "camera")
    assert (rule.query_modalities, rule.gallery_modalities) == (("tir",), ("rgb",))
    assert rule.query_rule == get_protocol("rgbnt201").query_rule
    rule = get_protocol("camera:rgb+tir>rgb+nir+tir")
    assert (rule.query_modalities, rule.gallery_modalities) == (("rgb", "tir"), ("rgb", "nir", "tir"))


@pytest.mark.parametrize("name", ["rgbnt201:tir", "rgbnt201:", "camera:a>b>c", "camera:>rgb", "camera:rgb+>tir"])
def test_modalities_that_cannot_be_parsed(name):
    with pytest.raises(ValueError, match=r"tir>rgb|one or more different modalities"):
        get_protocol(name)


@pytest.mark.parametrize("name", ["rgbnt201", "msvr310:tir+rgb>nir"])
def test_to_dict_comes_back(name):
    fields = json.loads(json.dumps(get_protocol(name).to_dict()))
    assert Protocol(**fields) == get_protocol(name)


def test_a_protocol_is_returned_as_it_is():
    custom = Protocol("custom", "scene", distance="euclidean", normalize=False, feature="after_neck")
    assert get_protocol(custom) is custom


@pytest.mark.parametrize("name", ["market", "market:tir>rgb"])
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"'market.*msvr310.*rgbnt201"):
        get_protocol(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exclude": "time"}, "exclude must be one of camera, scene, none; got 'time'"),
        ({"distance": "dot"}, "distance must be one of cosine, euclidean"),
        ({"feature": "neck"}, "feature must be one of before_neck, after_neck"),
        ({"ties": "random"}, "ties must be one of stable, optimistic, pessimistic"),
        ({"normalize": False}, "cosine distance normalises"),
        ({"query_modalities": ()}, "query_modalities must name"),
        ({"gallery_modalities": "rgb"}, "gallery_modalities must name"),
        ({"gallery_modalities": ("rgb", "rgb")}, "different modalities"),
    ],
)
def test_bad_fields_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**{"name": "mine", "exclude": "camera", **change})


def test_unknown_labels_default_to_minus_one():
    ids = Identities(torch.tensor([3, 4]))
    assert len(ids) == 2
    assert ids.pid.dtype == ids.camid.dtype == ids.sceneid.dtype == np.int64
    assert ids.camid.tolist() == ids.sceneid.tolist() == [-1, -1]
    assert ids[1:].pid.tolist() == [4] and repr(ids) == "Identities(2 samples of 2 identities)"


def test_bad_labels_are_rejected():
    with pytest.raises(ValueError, match="camid has 1 entries but pid has 2"):
        Identities([0, 1], [0])
    with pytest.raises(ValueError, match="pid must be a one-dimensional integer array; got float64"):
        Identities([0.5])
    with pytest.raises(ValueError, match="sceneid must be"):
        Identities([0], None, [[0]])


@pytest.mark.parametrize(
    ("protocol", "matches", "ignored_entries"),
    [("camera", {0: [1, 3], 1: []}, {0: [0], 1: []}), ("scene", {0: [0], 1: []}, {0: [1, 3], 1: []})],
)
def test_entries_of_the_same_identity(protocol, matches, ignored_entries):
    query = Identities([5, 6], [0, 0], [9, 9])
    gallery = Identities([5, 5, 7, 5], [0, 1, 0, 2], [8, 9, 9, 9])
    index, match, ignored = SameIdentity(query, gallery, get_protocol(protocol)).entries(0, 2)
    assert {i: index[i][match[i]].tolist() for i in range(2)} == matches
    assert {i: index[i][ignored[i]].tolist() for i in range(2)} == ignored_entries


def test_bad_keys_are_rejected():
    ids = Identities([0, 1], [0, 0])
    rule = get_protocol("none")
    with pytest.raises(ValueError, match="both or neither"):
        SameIdentity(ids, ids, rule, ["a", "b"])
    with pytest.raises(ValueError, match="gallery_keys has 1 entries but the gallery has 2"):
        SameIdentity(ids, ids, rule, ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 repeated keys"):
        SameIdentity(ids, ids, rule, ["a", "b"], ["a", "a"])
    with pytest.raises(ValueError, match=r"2 keys stand for different identities.*'a'"):
        SameIdentity(ids, ids, rule, ["a", "b"], ["b", "a"])
