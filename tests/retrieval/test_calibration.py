"""Scores to probabilities: laws of the fits, thresholds and rates against loops, files."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.retrieval import Calibration
from nextreid.retrieval.calibration import fit_curve, shown_name
from nextreid.retrieval.calibration_fit import (
    Pairs,
    detection_rates,
    fit_isotonic,
    fit_platt,
    log_loss,
    reliability,
    split_identities,
    thresholds,
)


def make_pairs(identities=40, each=4, gap=2.0, seed=0, noise=1.0):
    """Scores of two normal distributions whose true log likelihood ratio is ``gap * z - gap**2 / 2``."""
    rng = np.random.default_rng(seed)
    pid = np.repeat(np.arange(identities), each)
    same = pid[:, None] == pid[None]
    z = noise * rng.standard_normal(same.shape) + gap * same
    counts = ~np.eye(len(pid), dtype=bool)
    return Pairs((z / 10).astype(np.float32), pid, pid, counts)


def truth(scores, gap=2.0):
    return gap * np.asarray(scores) * 10 - gap**2 / 2


@pytest.mark.parametrize("fit", [fit_isotonic, fit_platt])
def test_a_fit_recovers_the_model_that_the_scores_were_drawn_from(fit):
    pairs = make_pairs(100, 6)
    points, odds = fit(*pairs.flat(), *pairs.bounds())
    at = np.linspace(-0.1, 0.3, 9)
    assert np.abs(np.interp(at, points, odds) - np.clip(truth(at), *np.log(pairs.bounds()))).max() < 0.5
    scores, same = pairs.flat()
    best = log_loss(truth(scores), same)
    assert log_loss(np.interp(scores, points, odds), same) < best + 0.01


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=40), st.randoms())
def test_isotonic_odds_never_fall_and_are_pavas_and_know_no_order(values, random):
    scores, same = np.array([v for v, _ in values]) / 10, np.array([s for _, s in values])
    points, odds = fit_isotonic(scores, same, 1e-3, 1e3)
    assert (np.diff(points) > 0).all() and (np.diff(odds) > 0).all()
    random.shuffle(values)
    again = fit_isotonic(np.array([v for v, _ in values]) / 10, np.array([s for _, s in values]), 1e-3, 1e3)
    np.testing.assert_allclose(again, (points, odds))
    # The max-min formula of isotonic regression, at every score.
    weight = np.where(same, 0.5 / max(1, same.sum()), 0.5 / max(1, (~same).sum()))

    def mean(low, high):
        inside = (scores >= low) & (scores <= high)
        return (weight * same)[inside].sum() / weight[inside].sum()

    levels = np.unique(scores)
    for level in levels:
        best = max(min(mean(low, high) for high in levels[levels >= level]) for low in levels[levels <= level])
        expected = np.log(np.clip(best / (1 - best) if best < 1 else np.inf, 1e-3, 1e3))
        assert np.abs(odds - expected).min() < 1e-9


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 3))
def test_curves_never_fall_and_probabilities_stay_inside(seed, gap):
    curve = fit_curve(make_pairs(8, 3, gap, seed), draws=0)
    at = np.linspace(-1, 1, 50)
    p = Calibration({"all": curve}).probability(at)
    assert (np.diff(p) >= -1e-12).all() and p.min() > 0 and p.max() < 1
    assert p.min() >= 1 / (8 + 2) - 1e-9 and p.max() <= 1 - 1 / (8 * 7 / 2 + 2) + 1e-9  # what 8 identities can tell


def test_the_better_fit_is_taken_and_calibrated_on_unseen_identities():
    straight = fit_curve(make_pairs(60, 4), draws=0)
    assert straight.log_losses[straight.method] == min(straight.log_losses.values()) < 0.45
    assert straight.ece < 0.03
    assert abs(sum(n for *_, n in straight.reliability) - (straight.same + straight.different) / 2) < 300
    bent = make_pairs(60, 4)
    steps = np.where(bent.scores > 0.1, 0.5, np.where(bent.scores > 0, 0.02, -0.6)) + bent.scores / 100
    assert fit_curve(replace(bent, scores=steps.astype(np.float32)), draws=0).method == "isotonic"


@pytest.mark.parametrize("rate", [0.2, 0.05])
def test_thresholds_against_a_loop_and_their_intervals_cover(rate):
    pairs = make_pairs(30, 3, seed=4)
    ((_, score, low, high, passed),) = thresholds(pairs, [rate], 100, 0)
    scores, same = pairs.flat()
    assert (scores[~same] >= score).mean() <= rate
    lower = np.sort(scores[~same & (scores < score)])[-1]
    assert (scores[~same] >= lower).mean() > rate
    assert passed == pytest.approx((scores[same] >= score).mean())
    true = np.quantile(make_pairs(200, 3, seed=5).flat()[0][~make_pairs(200, 3, seed=5).flat()[1]], 1 - rate)
    assert low <= true <= high and low <= score <= high
    assert thresholds(pairs, [1e-4], 5, 0) == [(1e-4, None, None, None, None)]


def test_detection_against_a_loop():
    pairs = make_pairs(40, 3, seed=2)
    ((_, threshold, rate),) = detection_rates(pairs, [0.1])
    alarms = detected = 0
    for row in range(len(pairs.query)):
        entries = [(pairs.scores[row, i], pairs.gallery[i]) for i in range(len(pairs.gallery)) if pairs.counts[row, i]]
        others = max(score for score, pid in entries if pid != pairs.query[row])
        best, pid = max(entries)
        alarms += others >= threshold
        detected += pid == pairs.query[row] and best >= threshold
    assert alarms / len(pairs.query) <= 0.1 < (alarms + 2) / len(pairs.query)
    assert rate == pytest.approx(detected / len(pairs.query))
    assert detection_rates(pairs, [0.01]) == ((0.01, None, None),)


def test_reliability_rows_weigh_both_kinds_alike():
    p = np.array([0.05, 0.05, 0.95, 0.95, 0.95, 0.95])
    same = np.array([False, False, True, True, True, False])
    error, rows = reliability(p, same)
    assert [row[2] for row in rows] == [2, 4]
    assert rows[1][1] == pytest.approx(0.5 / (0.5 + 1 / 6))
    assert error == pytest.approx((1 / 3) * 0.05 + (2 / 3) * 0.2)


def test_a_gallery_shares_its_probability_out():
    calibration = Calibration({"all": fit_curve(make_pairs(), draws=0)})
    odds = np.array([50.0, 2.0, 0.1])
    found = calibration.identify(odds)
    assert found.sum() < 1 and found.argmax() == 0
    assert found[0] == pytest.approx(50 / 6 / (52.1 / 6 + 0.5))
    assert calibration.identify(np.array([50.0] + [0.1] * 99))[0] < found[0]  # the same score means less among many
    assert calibration.identify(odds, enrolled=0.9)[0] > found[0]
    assert calibration.probability(0.2, prior=0.01) < calibration.probability(0.2)
    with pytest.raises(ValueError, match="enrolled must lie between"):
        calibration.identify(odds, enrolled=1.0)


def test_modalities_choose_the_curve_and_drift_is_told(caplog):
    curve = fit_curve(make_pairs(), draws=0)
    calibration = Calibration({"rgb+tir": curve, "tir>rgb": replace(curve, low=0.0, high=0.01)})
    assert calibration.curve(("rgb", "tir")) is curve and calibration.curve() is curve
    assert calibration.curve("tir", "rgb").high == 0.01
    with pytest.raises(KeyError, match=r"unknown calibrated set of modalities 'rgb'.*Known: rgb\+tir, tir>rgb"):
        calibration.curve("rgb")
    with pytest.raises(KeyError, match=r"'rgb>tir'.*--cross"):
        calibration.curve("rgb", "tir")
    assert calibration.drift([0.0, 0.1]) == 0 and not caplog.records
    assert calibration.drift([0.005, 0.9], "tir", "rgb") == 0.5
    assert "50 % of the scores lie outside the calibrated range of 0.000 to 0.010" in caplog.text
    assert shown_name(("rgb",), ("rgb",)) == "rgb"


def test_files(tmp_path):
    calibration = Calibration({"all": fit_curve(make_pairs(20), draws=20)}, {"dataset": "d", "embedding": None})
    file = calibration.write(tmp_path)
    again = Calibration.read(tmp_path)
    assert again == calibration
    at = np.linspace(-1, 1, 7)
    assert np.array_equal(again.probability(at), calibration.probability(at))
    assert again.threshold(1e-2) == calibration.curve().thresholds[0].score
    with pytest.raises(ValueError, match="too few pairs"):
        again.threshold(1e-4)
    with pytest.raises(ValueError, match=r"0\.5 has no threshold; there are: 0\.01, 0\.001"):
        again.threshold(0.5)
    good = json.loads(file.read_text())
    for change, message in {
        "version": "of version 9, written by a newer nextreid",
        "fall": "probabilities of curve all fall",
        "nan": "probabilities must be probabilities above 0",
        "word": "unknown key 'wrod'",
    }.items():
        bad = json.loads(json.dumps(good))
        values = bad["curves"]["all"]["probabilities"]
        if change == "version":
            bad["version"] = 9
        elif change == "fall":
            values[-1] = values[0] / 2
        elif change == "nan":
            values[0] = 7
        else:
            bad["wrod"] = 1
        file.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=message):
            Calibration.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="nextreid calibrate"):
        Calibration.read(tmp_path / "nothing")


def test_too_few_identities_are_named():
    with pytest.raises(ValueError, match="only 3 identities have a pair"):
        split_identities(make_pairs(3), 0)
