"""NAME=VALUE, as every command takes it."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nextreid.cli.arguments import pairs, short_names


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=20) | st.text("[]{}(),:'\"01-e.", max_size=30))
@example("[" * 9_000)
@example("-" * 9_000 + "1")
@example("{[]: 1}")
@example("9" * 5_000)
def test_any_value_is_a_value_or_a_text(value: str) -> None:
    assert list(pairs([f"name={value}"], "--set")) == ["name"]


def test_values_are_typed_and_what_is_none_is_named() -> None:
    typed = pairs(["a=1", "b=true", "c=(1, 2)", "d=x=y", "e="], "--set")
    assert typed == {"a": 1, "b": True, "c": (1, 2), "d": "x=y", "e": ""}
    for item, message in (("a", "NAME=VALUE"), ("=1", "NAME=VALUE"), ("root=x", "option of its own")):
        with pytest.raises(ValueError, match=message):
            pairs([item], "--set", reserved=("root",))
    with pytest.raises(ValueError, match="the value of 'a' is longer than 10000 characters"):
        pairs(["a=" + "x" * 10_000], "--set")


def test_models_are_named_by_the_ends_of_their_paths_that_tell_them_apart():
    assert short_names(["runs/a/last", "next_tiny"]) == ["a/last", "next_tiny"]
    assert short_names(["x/a/last", "y/a/last"]) == ["x/a/last", "y/a/last"]
    assert short_names(["m/one", "m/two"]) == ["one", "two"]
    assert short_names(["last"]) == ["last"]
