"""Protocols by name, and refused values."""

import pytest

from nextreid.retrieval import Protocol, get_protocol, list_protocols


def test_known_protocols():
    rules = {name: get_protocol(name).exclude for name in list_protocols()}
    assert rules == {
        "camera": "camera",
        "scene": "scene",
        "none": "none",
        "rgbnt201": "camera",
        "msvr310": "scene",
        "rgbnt100": "camera",
        "wmveid863": "camera",
        "synthetic-persons": "camera",
    }
    assert all(get_protocol(name).feature == "before_neck" for name in rules)


def test_a_protocol_is_handed_back():
    own = Protocol("own", "scene", distance="euclidean", normalize=False, feature="after_neck")
    assert get_protocol(own) is own


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'market'.*msvr310.*rgbnt201"):
        get_protocol("market")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exclude": "time"}, "exclude must be one of camera, scene, none; got 'time'"),
        ({"distance": "dot"}, "distance must be one of cosine, euclidean"),
        ({"feature": "neck"}, "feature must be one of before_neck, after_neck"),
        ({"normalize": False}, "cosine distance normalises"),
    ],
)
def test_bad_fields_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**{"name": "mine", "exclude": "camera", **change})
