"""Who a query shows: by a calibration whose odds are known in closed form."""

import logging

import numpy as np
import pytest

from nextreid.retrieval import Calibration, Gallery
from nextreid.retrieval.calibration import Curve, Threshold

WIDTH = 8
ABOUT = {"model": "m", "digest": "d", "captions": "no", "embedding": None}


def curve():
    """Log odds that rise from -4 at score 0 to 4 at score 1."""
    known = 1 / (1 + np.exp(-np.array([-4.0, 4.0])))
    empty = {"log_losses": {}, "ece": 0.0, "reliability": (), "detection": ()}
    counts = {"identities": 9, "same": 9, "different": 9}
    limits = (Threshold(0.01, 0.7), Threshold(0.001, None))
    return Curve("platt", (0.0, 1.0), tuple(known), thresholds=limits, low=-0.5, high=0.99, **empty, **counts)


def at(cosine, axis):
    """A unit vector of this cosine to the first axis."""
    row = np.zeros(WIDTH, np.float32)
    row[[0, axis]] = cosine, np.sqrt(1 - cosine**2)
    return row


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "g", WIDTH, model="m", digest="d") as gallery:
        names = ["anna", "anna", "ben", None, "carl"]
        rows = np.stack([at(c, i) for i, c in enumerate([0.9, 0.8, 0.5, 0.95, 0.1], 1)])
        gallery.add(rows, [{"identity": name} for name in names])
        Calibration({"rgb+nir+tir": curve()}, ABOUT).write(gallery.folder)
        yield gallery


QUERY = np.eye(WIDTH, dtype=np.float32)[0]


def test_the_probability_is_the_posterior_over_identities_and_nobody(gallery):
    odds = np.exp(8 * np.array([0.9, 0.5, 0.1]) - 4)  # the best entries of anna, ben, carl
    for enrolled in (0.5, 0.9):
        expected = odds[0] * enrolled / 3 / ((odds * enrolled / 3).sum() + 1 - enrolled)
        match = gallery.match(QUERY, enrolled=enrolled)
        assert match.identity == "anna" and match.probability == pytest.approx(expected, abs=2e-3)
        assert match.hit.entry.key == "1" and f"identity anna, probability {expected:.2f}" == str(match)


def test_a_doubtful_query_is_unknown(gallery):
    match = gallery.match(QUERY, least=0.99)
    assert match.identity is None and str(match).startswith("unknown; nearest is anna, probability 0.8")
    low = gallery.match(QUERY, where={"identity": ["ben", "carl"]}, least=0.1, false_match_rate=0.01)
    assert low.identity is None and low.hit.entry.identity == "ben", "its score is below the threshold"
    assert gallery.match(QUERY, least=0.1, false_match_rate=0.01).identity == "anna"
    with pytest.raises(ValueError, match=r"too few pairs of two identities for a false match rate of 0\.001"):
        gallery.match(QUERY, least=0.1, false_match_rate=0.001)
    assert gallery.match(QUERY, where={"identity": None}) == (None, 0.0, None)


def test_identities_beyond_the_nearest_entries_lower_the_probability(gallery):
    before = gallery.match(QUERY).probability
    gallery.add(np.stack([at(0.0, 2)] * 250), [{"identity": f"x{i}"} for i in range(250)])
    odds = np.exp(8 * np.array([0.9, 0.5, 0.1, *[0.0] * 250]) - 4) * 0.5 / 253
    match = gallery.match(QUERY)
    assert match.probability == pytest.approx(odds[0] / (odds.sum() + 0.5), abs=2e-3) and match.probability < before


def test_several_queries_and_drift(gallery, caplog):
    with caplog.at_level(logging.WARNING):
        matches = gallery.match(np.stack([at(0.9, 1), at(0.5, 3)]), least=0.1)
    assert [match.identity for match in matches] == ["anna", "ben"]
    assert "lie outside the calibrated range" in caplog.text


def test_what_was_not_calibrated_or_is_of_another_model_is_named(gallery):
    file = gallery.folder / "calibration.json"
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no calibration\.json.*nextreid calibrate"):
        gallery.match(QUERY)
    for name, wrong in (("digest", "x"), ("captions", "yes"), ("embedding", "y")):
        Calibration({"rgb+nir+tir": curve()}, {**ABOUT, name: wrong}).write(gallery.folder)
        with pytest.raises(ValueError, match=rf"calibration\.json has {name} '{wrong}', gallery .* has.*--no-text"):
            gallery.match(QUERY)
    Calibration({"rgb": curve()}, ABOUT).write(gallery.folder)
    with pytest.raises(KeyError, match="unknown calibrated set of modalities 'rgb"):
        gallery.match(QUERY)
