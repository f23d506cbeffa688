"""Labels and the entries of a query's own identity."""

import numpy as np
import pytest
import torch

from nextreid.retrieval import Identities, get_protocol
from nextreid.retrieval.identities import SameIdentity


def test_unknown_labels_default_to_minus_one():
    ids = Identities(torch.tensor([3, 4]))
    assert len(ids) == 2
    assert ids.pid.dtype == ids.camid.dtype == ids.sceneid.dtype == np.int64
    assert ids.camid.tolist() == ids.sceneid.tolist() == [-1, -1]


def test_bad_labels_are_refused():
    with pytest.raises(ValueError, match="camid has 1 entries but pid has 2"):
        Identities([0, 1], [0])
    with pytest.raises(ValueError, match="pid must be a one-dimensional integer array; got float64"):
        Identities([0.5])
    with pytest.raises(ValueError, match="sceneid must be"):
        Identities([0], None, [[0]])


@pytest.mark.parametrize(
    ("protocol", "matches", "out"),
    [("camera", {0: [1, 3], 1: []}, {0: [0], 1: []}), ("scene", {0: [0], 1: []}, {0: [1, 3], 1: []})],
)
def test_rows(protocol, matches, out):
    query = Identities([5, 6], [0, 0], [9, 9])
    gallery = Identities([5, 5, 7, 5], [0, 1, 0, 2], [8, 9, 9, 9])
    index, match, removed = SameIdentity(query, gallery, get_protocol(protocol)).rows(0, 2)
    assert {i: index[i][match[i]].tolist() for i in range(2)} == matches
    assert {i: index[i][removed[i]].tolist() for i in range(2)} == out


def test_bad_keys_are_refused():
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
