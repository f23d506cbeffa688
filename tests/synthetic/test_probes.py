"""Readers that must fail, and readers that must not be too good, on the procedural persons and vehicles."""

import math
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from nextreid.synthetic import VEHICLE_PARTS, synthetic_persons, synthetic_vehicles

MODALITIES = ("rgb", "nir", "tir")


MADE = {"persons": (synthetic_persons, 4), "vehicles": (synthetic_vehicles, 3)}


@pytest.fixture(scope="module", params=MADE)
def samples(request):
    make, frames = MADE[request.param]
    return make("tiny", seed=11, splits=("test",), num_test=50, frames_per_visit=frames).dataset.gallery


def mean_ap(samples, features):
    """Mean average precision in per cent under the camera rule, written out query by query."""
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    pid, cam = np.array([s.pid for s in samples]), np.array([s.camid for s in samples])
    precisions = []
    for i, row in enumerate(features @ features.T):
        keep = (pid != pid[i]) | (cam != cam[i])
        hit = (pid == pid[i])[keep][np.argsort(-row[keep], kind="stable")]
        at = np.flatnonzero(hit)
        precisions.append(np.mean(np.arange(1, len(at) + 1) / (at + 1)))
    return 100 * float(np.mean(precisions))


@pytest.fixture(scope="module")
def chance(samples):
    return np.mean([mean_ap(samples, np.random.default_rng(k).normal(size=(len(samples), 64))) for k in range(5)])


def pixels(samples, m):
    size = tuple(side // 2 for side in samples[0].images[m].shape[1::-1])
    small = [Image.fromarray(s.images[m]).resize(size, Image.Resampling.BILINEAR) for s in samples]
    flat = np.stack([np.asarray(image, dtype=np.float64).ravel() for image in small])
    return flat - flat.mean(0)


def border(samples, m):
    edge = np.stack([s.images[m][:, [0, 1, -2, -1]].astype(np.float64).ravel() for s in samples])
    return edge - edge.mean(0)


def tfidf(texts):
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    terms = [Counter(w) + Counter(pairwise(w)) for w in words]
    seen = Counter(term for bag in terms for term in bag)
    column = {term: k for k, term in enumerate(seen)}
    matrix = np.zeros((len(texts), len(column)))
    for row, bag in zip(matrix, terms, strict=True):
        for term, count in bag.items():
            row[column[term]] = count * (1 + math.log((1 + len(texts)) / (1 + seen[term])))
    return matrix


@pytest.mark.parametrize("m", range(3), ids=MODALITIES)
def test_the_border_of_an_image_is_at_chance(samples, chance, m):
    assert mean_ap(samples, border(samples, m)) < 1.5 * chance


def test_a_leak_into_the_border_would_show(samples, chance):
    """The probe can fail: one grey level for each identity is enough."""
    rng = np.random.default_rng(0)
    tint = {pid: rng.normal(size=12) for pid in {s.pid for s in samples}}
    marks = np.stack([tint[s.pid] for s in samples])
    assert mean_ap(samples, marks + rng.normal(size=marks.shape)) > 5 * chance


@pytest.mark.parametrize("m", range(3), ids=MODALITIES)
def test_raw_pixels_tell_something_but_not_all(samples, chance, m):
    assert 2 * chance < mean_ap(samples, pixels(samples, m)) < 30


@pytest.mark.parametrize("m", range(3), ids=MODALITIES)
def test_captions_of_one_modality_are_weak(samples, chance, m):
    assert 2 * chance < mean_ap(samples, tfidf([" ".join(s.captions[m]) for s in samples])) < 20 * chance


def test_captions_alone_lie_in_the_published_range(samples, chance):
    text = tfidf([" ".join(" ".join(sentences) for sentences in s.captions) for s in samples])
    most = 20 if "gender" in samples[0].truth["attributes"] else 25  # published: 21 times for vehicles
    assert 3 * chance < mean_ap(samples, text) < most * chance


def test_not_even_exact_attributes_name_everybody(samples):
    exact = tfidf([" ".join(re.sub("[- ]", "", f"{k}{v}") for k, v in s.truth["attributes"].items()) for s in samples])
    assert mean_ap(samples, exact) < 95


def test_camera_and_light_do_not_predict_an_identity(samples, chance):
    scene = np.array([[s.camid == c for c in range(4)] + [s.truth["night"], s.truth["light"]] for s in samples])
    assert mean_ap(samples, scene.astype(float)) < 1.6 * chance


@pytest.mark.parametrize("samples", ["vehicles"], indirect=True)
@pytest.mark.parametrize("m", range(2), ids=MODALITIES[:2])
def test_a_plate_of_few_pixels_is_not_read(samples, m):
    """Plates cut out by the part map, of vehicles seen from front or back; what is left is their form and contrast."""
    seen = [s for s in samples if s.truth["visibility"]["plate"] > 1 and s.truth["view"] in ("front", "back")]
    seen = [s for s in seen if any(o.pid == s.pid and o.camid != s.camid for o in seen)]
    plates = []
    for s in seen:
        rows, columns = np.nonzero(s.truth["parts"] == VEHICLE_PARTS.index("plate"))
        crop = s.images[m][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        small = np.asarray(Image.fromarray(crop).convert("L").resize((40, 12), Image.Resampling.BILINEAR), dtype=float)
        plates.append(((small - small.mean()) / (small.std() + 1e-6)).ravel())
    chance = np.mean([mean_ap(seen, np.random.default_rng(k).normal(size=(len(seen), 64))) for k in range(5)])
    assert len(seen) > 60 and mean_ap(seen, np.stack(plates) - np.mean(plates, axis=0)) < 3 * chance


@pytest.mark.parametrize("samples", ["vehicles"], indirect=True)
@pytest.mark.parametrize(
    ("field", "published"),
    [
        ("vehicle_type", 0.88),
        ("branding", 0.72),
        ("view", 0.71),
        ("capture_time", 0.94),
        ("headlights_shape", 0.53),
        ("window_style", 0.64),
        ("roof_type", 0.68),
        ("exterior_condition", 0.87),
        ("roof_rack", 1.0),
    ],
)
def test_rgb_and_nir_answers_about_vehicles_agree_as_published(samples, field, published):
    answers = [[s.truth["answers"][m][field] for m in ("rgb", "nir")] for s in samples]
    known = [[a.value if a.is_known(0.15) else None for a in pair] for pair in answers]
    assert abs(np.mean([rgb == nir for rgb, nir in known]) - published) < 0.10
