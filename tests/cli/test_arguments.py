"""What several commands take: NAME=VALUE, a dataset of one's own, models by name."""

import argparse

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nextreid.cli.arguments import dataset_arguments, dataset_of, pairs, short_names


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


def test_a_folder_is_read_as_it_lies_unless_it_has_splits(tmp_path):
    parser = argparse.ArgumentParser()
    dataset_arguments(parser)
    for name in ("photos/anna/rgb/1_c1_a.jpg", "photos/ben/rgb/2_c1_a.jpg", "tree/test/rgb/7_c2_a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    photos = dataset_of(parser.parse_args(["--dataset", str(tmp_path / "photos"), "--dataset-arg", "modalities=rgb"]))
    assert photos.protocol == "none" and photos.label_names["pid"] == {0: "anna", 1: "ben"}
    tree = dataset_of(parser.parse_args(["--dataset", str(tmp_path / "tree")]))
    assert tree.protocol == "camera" and [(s.pid, s.camid) for s in tree.query] == [(7, 2)]
    names = ["--dataset", str(tmp_path / "photos"), "--pattern", "{pid:word}/{modality}/{camid}_{*}.jpg"]
    with pytest.raises(ValueError, match=r"has no {split}"):
        dataset_of(parser.parse_args(names))
