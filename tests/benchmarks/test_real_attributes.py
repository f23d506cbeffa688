"""Descriptions of real networks, what is counted, and the networks themselves where they are."""

import os
from pathlib import Path

import pytest

from benchmarks.real_attributes import PERSON, SCHEMAS, VEHICLE, _agreement, describe, run
from nextreid.captioning.distribution import answer_of


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_the_descriptions_fit_the_schemas(tmp_path, name):
    (tmp_path / f"{name}.onnx").write_bytes(b"")
    found = describe(tmp_path, name, tmp_path)
    assert (found.width, found.height) == {PERSON: (80, 160), VEHICLE: (72, 72)}[name]
    with pytest.raises(SystemExit, match=r"no .*\.onnx or .*\.xml"):
        describe(tmp_path / "none", name, tmp_path)


def test_agreement_is_a_share_and_the_gap_its_distance_to_the_confidence():
    pairs = [("a", 0.9, "a"), ("a", 0.9, "b"), (None, 0.3, None), ("b", 0.3, None)]
    counted = _agreement("", "all", pairs)
    assert (counted["answers"], counted["agreement"], counted["mean_confidence"]) == (4, 0.5, 0.6)
    assert counted["gap"] == pytest.approx(((1.8 - 1) + (1 - 0.6)) / 4) and counted["most_frequent"] == 0.5


def test_nothing_runs_without_the_files(monkeypatch):
    monkeypatch.delenv("NEXTREID_REAL", raising=False)
    with pytest.raises(SystemExit, match="set NEXTREID_REAL"):
        next(run())


@pytest.mark.skipif(
    not os.environ.get("NEXTREID_NETWORKS"), reason="NEXTREID_NETWORKS names no folder of real attribute networks"
)
def test_a_real_network_tells_red_from_white(tmp_path):
    import asyncio

    from PIL import Image

    classifier = describe(Path(os.environ["NEXTREID_NETWORKS"]), VEHICLE, tmp_path)

    async def colour(shade):
        async with classifier.client() as client:
            return answer_of(client.classify(Image.new("RGB", (90, 70), shade))["color"]).value

    # plain shades are no cars, but red is red in the right order of the channels alone
    shades = {"red": (200, 10, 20), "white": (250, 250, 250), "black": (5, 5, 5)}
    assert {name: asyncio.run(colour(shade)) for name, shade in shades.items()} == {name: name for name in shades}
