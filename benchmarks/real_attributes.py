"""Attributes of real crops from two real networks: how far their probabilities agree with what another crop says.

``NEXTREID_REAL`` is a folder as of ``real``; ``NEXTREID_NETWORKS`` one with Open Model Zoo's
person-attributes-recognition-crossroad-0230 and vehicle-attributes-recognition-barrier-0039, as ``.onnx`` or ``.xml``.
Nobody has labelled these objects, so a probability is compared with agreement: how often another crop of the object
gives the same answer. Of two crops that disagree one is right at most, so no more than (1 + agreement) / 2 of the
answers are. The vehicles' types are compared with the detector's too, which tells cars (vans among them), buses and
trucks apart.
"""

import asyncio
import csv
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.real import JITTER, SMALLEST, _cut, _frame
from nextreid.captioning import get_schema
from nextreid.captioning.classifier import Classifier, read_classifier
from nextreid.captioning.distribution import Distribution, answer_of, mean

VIEWS = 8
EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
PERSON, VEHICLE = "person-attributes-recognition-crossroad-0230", "vehicle-attributes-recognition-barrier-0039"
_CHANCES = {  # field: channel of output 453, its value and that of the rest; null where the schema has no word
    "gender": (0, "male", "female"),
    "carrying": (1, "bag", "none"),
    "backpack": (2, "yes", "no"),
    "lower_clothing": (5, "trousers", None),
    "hair_length": (6, "long", "short"),
    "upper_clothing": (7, "jacket", None),
}
_COLOURS = ["white", "gray", "yellow", "red", "green", "blue", "black"]
DESCRIPTIONS: Mapping[str, dict[str, Any]] = {
    PERSON: {
        "input": {"height": 160, "width": 80, "channels": "bgr"},
        "outputs": [
            {"field": field, "output": "453", "channels": [channel], "values": [value, rest]}
            for field, (channel, value, rest) in _CHANCES.items()
        ],
    },
    VEHICLE: {
        "input": {"height": 72, "width": 72, "channels": "bgr"},
        "outputs": [
            {"field": "color", "output": "color", "values": _COLOURS},
            {"field": "vehicle_type", "output": "type", "values": [None, "bus", "truck", "van"]},
        ],
    },
}
KINDS = {"person": PERSON, "car": VEHICLE, "bus": VEHICLE, "truck": VEHICLE}
SCHEMAS = {PERSON: "person", VEHICLE: "vehicle"}
DETECTED = {None: "car", "van": "car"}  # an answer in the words of the detector


Said = Mapping[str, Distribution]
"""What a network says of one crop."""

Pair = tuple[Any, float, Any]
"""An answer, its probability, and what another crop or the detector says."""


class Looks(NamedTuple):
    """What the detector says of one object, and the network of its crops in each spectrum."""

    kind: str
    rgb: list[Said]
    tir: list[Said]


def run() -> Iterator[dict[str, Any]]:
    """For each field: one crop against another, by confidence; four against four others; visible against thermal."""
    scene, networks = (Path(os.environ.get(name, "")) for name in ("NEXTREID_REAL", "NEXTREID_NETWORKS"))
    scene /= "roadscene"
    if not (scene / "objects.csv").is_file() or not os.environ.get("NEXTREID_NETWORKS"):
        raise SystemExit("set NEXTREID_REAL to a folder with roadscene/objects.csv, NEXTREID_NETWORKS to the networks'")
    with tempfile.TemporaryDirectory() as folder:
        classifiers = {name: describe(networks, name, Path(folder)) for name in SCHEMAS}
    for name, objects in asyncio.run(_look(scene, classifiers)).items():
        for output in classifiers[name].outputs:
            yield from _rows(name, output.field, objects)


def describe(networks: Path, name: str, folder: Path) -> Classifier:
    """Write the description of a network and read it as a user's."""
    file = next((networks / f"{name}{end}" for end in (".onnx", ".xml") if (networks / f"{name}{end}").is_file()), None)
    if file is None:
        raise SystemExit(f"there is no {name}.onnx or {name}.xml in {networks}")
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, "network": str(file.resolve()), **DESCRIPTIONS[name]}))
    return read_classifier(path, get_schema(SCHEMAS[name]))


async def _look(scene: Path, classifiers: Mapping[str, Classifier]) -> dict[str, list[Looks]]:
    """Run the networks on crops of every object that is large enough, `VIEWS` in each spectrum."""
    rng = np.random.default_rng(0)
    with (scene / "objects.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if min(float(r["width"]), float(r["height"])) >= SMALLEST]
    found: dict[str, list[Looks]] = {name: [] for name in classifiers}
    for name, classifier in classifiers.items():
        async with classifier.client() as client:
            for row in (row for row in rows if KINDS.get(row["kind"]) == name):
                crops = {s: [_crop(scene / s / row["frame"], row, rng) for _ in range(VIEWS)] for s in ("rgb", "tir")}
                said: dict[str, list[Said]] = {
                    s: [client.classify(crop) for crop in views] for s, views in crops.items()
                }
                found[name].append(Looks(row["kind"], **said))
    return found


def _crop(path: Path, row: dict[str, str], rng: np.random.Generator) -> Image.Image:
    return _cut(_frame(path), row, JITTER, rng)


def _rows(network: str, field: str, objects: list[Looks]) -> Iterator[dict[str, Any]]:
    rgb, tir = (
        [[_said(view[field]) for view in getattr(one, spectrum)] for one in objects] for spectrum in ("rgb", "tir")
    )
    pairs = [(*a, b[0]) for views in rgb for a, b in permutations(views, 2)]
    bins: defaultdict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        bins[min(int(np.searchsorted(EDGES, pair[1], side="right")) - 1, len(EDGES) - 2)].append(pair)
    about = {"network": network, "field": field, "objects": len(objects)}
    yield about | _agreement("one crop, another crop", "all", pairs)
    for place in sorted(bins):
        yield about | _agreement("one crop, another crop", f"{EDGES[place]:g} to {EDGES[place + 1]:g}", bins[place])
    half = VIEWS // 2
    pooled = [
        [_said(mean([view[field] for view in one.rgb[part]])) for part in (slice(half), slice(half, None))]
        for one in objects
    ]
    both = [(*a, b[0]) for views in pooled for a, b in permutations(views, 2)]
    yield about | _agreement("mean of four crops, four others", "all", both)
    across = [(*a, b[0]) for ours, theirs in zip(tir, rgb, strict=True) for a, b in zip(ours, theirs, strict=True)]
    yield about | _agreement("thermal crop, visible crop", "all", across)
    if field == "vehicle_type":
        named = [
            (DETECTED.get(said, said), p, one.kind)
            for one, views in zip(objects, rgb, strict=True)
            for said, p in views
        ]
        yield about | _agreement("one crop, the detector", "all", named)


def _said(shares: Distribution) -> tuple[str | None, float]:
    """Return the answer, None for unknown, and its probability."""
    answer = answer_of(shares)
    return answer.value, answer.weight if answer.value is not None else 1 - sum(shares.values())


def _agreement(setting: str, confidence: str, pairs: list[Pair]) -> dict[str, Any]:
    sure = np.array([probability for _, probability, _ in pairs])
    same = np.array([first == second for first, _, second in pairs], float)
    places = np.minimum((sure * 15).astype(int), 14)
    gap = sum(abs(float(np.sum((sure - same)[places == b]))) for b in range(15)) / len(pairs)
    answers = [first for first, _, _ in pairs]
    return {
        "setting": setting,
        "confidence": confidence,
        "answers": len(pairs),
        "mean_confidence": round(float(sure.mean()), 4),
        "agreement": round(float(same.mean()), 4),
        "gap": round(gap, 4),
        "most_frequent": round(max(answers.count(value) for value in set(answers)) / len(answers), 4),
    }
