"""Messages about names that do not exist: what was meant, what there is, and no more than a reader needs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nextreid
from nextreid._names import clip, closest, first_few, show, unknown
from nextreid.engine import get_recipe
from nextreid.retrieval import get_protocol


@given(st.text(max_size=300))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_no_name_makes_a_long_message(name):
    assert len(show(name)) <= 80
    message = unknown("fruit", name, ["apple", "pear"])
    assert message.startswith("unknown fruit ") and len(message) < 200


def test_many_long_names_make_a_short_message():
    assert first_few(["a", "b"]) == "a, b" and first_few("abcd") == "a, b, c, …"
    assert len(first_few(["x" * 10**6] * 10**4)) < 400
    assert clip("short") == "short" and len(clip("x" * 200)) == 120


def test_near_names_are_proposed_whatever_their_case():
    assert closest("RGBNT20", ["rgbnt201", "rgbnt100", "manifest"])[0] == "rgbnt201"
    assert closest("qqqq", ["rgbnt201"]) == []
    assert (
        unknown("fruit", "aple", ["apple", "pear"]) == "unknown fruit 'aple'. Did you mean 'apple'? Known: apple, pear"
    )
    assert unknown("fruit", "qq", []) == "unknown fruit 'qq'. Known: none"


def test_several_names_are_counted():
    message = unknown("field", {f"x{i}": 0 for i in range(9)}, ["epochs"])
    assert message == "unknown field 'x0', 'x1', 'x2' and 6 more. Known: epochs"


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: nextreid.create_model("next_tinny"), "next_tiny"),
        (lambda: nextreid.create_layer("mmfa", dim=8), "MMFA"),
        (lambda: nextreid.load_dataset("RGBNT-201"), "rgbnt201"),
        (lambda: get_recipe("tinny"), "tiny"),
        (lambda: get_recipe(epoch=3), "epochs"),
        (lambda: get_protocol("camara"), "camera"),
        (lambda: get_protocol("rgbnt2O1:tir>rgb"), "rgbnt201"),
    ],
)
def test_every_registry_says_what_was_meant(call, meant):
    with pytest.raises((ValueError, KeyError), match=f"Did you mean .*'{meant}'"):
        call()
