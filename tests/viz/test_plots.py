"""What stands in the plots of embeddings, scores, training and captions: read back from the drawn objects."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.retrieval.calibration import Curve, Threshold
from nextreid.viz import ScoreCounts, captions_plot, scores_plot, space_plot, training_plot


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_an_identity_has_one_look_in_all_panels():
    rng = np.random.default_rng(0)
    points = {"a": rng.random((5, 2)), "b": rng.random((5, 2))}
    plot = space_plot(points, ["x", "y", "x", "z", "y"], {"a": "mAP 50.0 %"}, "said")
    first, second = plot.figure.axes
    assert (
        first.get_title("left") == "(a) a\nmAP 50.0 %"
        and second.get_title("left") == "(b) b"
        and plot.caption == "said"
    )
    for one, other in zip(first.collections, second.collections, strict=True):
        np.testing.assert_array_equal(one.get_facecolor(), other.get_facecolor())
        np.testing.assert_array_equal(one.get_paths()[0].vertices, other.get_paths()[0].vertices)
    np.testing.assert_allclose(second.collections[1].get_offsets(), points["b"][[1, 4]])
    assert [text.get_text() for text in plot.figure.legends[0].texts] == ["x", "y", "z"]


def test_a_single_sample_and_many_identities_are_drawn():
    assert not space_plot({"a": np.zeros((1, 2))}, ["x"], {}).figure.legends
    many = [str(i) for i in range(60)]
    assert not space_plot({"a": np.random.default_rng(0).random((60, 2))}, many, {}).figure.legends
    with pytest.raises(ValueError, match="nothing to draw: 0 models"):
        space_plot({}, ["x"], {})
    with pytest.raises(ValueError, match=r"points of a must be \(2, 2\), got \(1, 2\)"):
        space_plot({"a": np.zeros((1, 2))}, ["x", "y"], {})


counts_of = st.lists(st.integers(0, 9), min_size=12, max_size=12)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(counts_of, counts_of)
def test_error_rates_are_those_of_counting(same, different):
    counts = ScoreCounts(np.linspace(-1, 1, 13), np.array(same), np.array(different))
    match, miss = counts.error_rates()
    for edge in range(13):
        assert match[edge] == pytest.approx(sum(different[edge:]) / max(1, sum(different)))
        assert miss[edge] == pytest.approx(sum(same[:edge]) / max(1, sum(same)))
    if sum(same) and sum(different):
        equal = counts.equal_error_rate()
        at = int(np.argmax(miss >= match))
        assert min(match[at], miss[at - 1]) - 1e-9 <= equal <= max(match[at - 1], miss[at]) + 1e-9


CURVE = Curve(
    "platt",
    (0.0, 1.0),
    (0.1, 0.9),
    {},
    0.034,
    ((0.1, 0.2, 50), (0.9, 0.8, 70)),
    (Threshold(0.01, 0.5), Threshold(0.001, None)),
    (),
    0.0,
    1.0,
    4,
    60,
    60,
)


def test_scores_show_thresholds_and_curves_where_there_are_some():
    edges = np.linspace(-1, 1, 41)
    middles = (edges[1:] + edges[:-1]) / 2
    same, different = (np.round(1000 * np.exp(-((middles - m) ** 2) / 0.05)).astype(int) for m in (0.6, 0.1))
    counts = {"a": ScoreCounts(edges, same, different), "b": ScoreCounts(edges, same[::-1], different)}
    plain = scores_plot({"a": counts["a"]}, {})
    assert [axis.get_title("left") for axis in plain.figure.axes] == ["a", "DET"]
    plot = scores_plot(counts, {"b": CURVE}, style="print")
    one, other, trade, reliable = plot.figure.axes
    assert texts(one) == [] and texts(other) == ["FMR 1 %"]
    assert other.lines[0].get_xdata()[0] == 0.5
    np.testing.assert_allclose(reliable.lines[1].get_xdata(), [0.1, 0.9])
    names = [text.get_text() for text in trade.get_legend().texts]
    assert names[0].startswith("a\nEER") and len(names) == 2
    apart = ScoreCounts(edges, same * (middles > 0.5), different * (middles < 0.3))
    assert "EER 0.0 %" in scores_plot({"a": apart}, {}).figure.axes[1].get_legend().texts[0].get_text()
    with pytest.raises(ValueError, match="a has 0 pairs of one identity and"):
        scores_plot({"a": ScoreCounts(edges, 0 * same, different)}, {})


def row(epoch, total, lr, **more):
    return {"epoch": epoch, "loss": {"total": total, "identity": total / 2}, "lr": lr, **more}


def test_training_shows_each_number_at_its_epoch():
    lr = {"new": 1e-3, "tower": 1e-4}
    runs = {
        "one": [row(1, 4.0, lr), row(2, 3.0, lr, evaluation={"mAP": 0.25, "rank-1": 0.5})],
        "two": [row(1, 5.0, lr)],
    }
    axes = training_plot(runs).figure.axes
    assert [axis.get_title("left") for axis in axes] == [
        "loss",
        "loss: identity",
        "learning rate",
        "mAP, %",
        "rank-1, %",
    ]
    assert axes[0].lines[0].get_xydata().tolist() == [[1, 4], [2, 3]]
    assert axes[1].lines[1].get_xydata().tolist() == [[1, 2.5]]
    assert axes[3].lines[0].get_xydata().tolist() == [[2, 25]]
    assert [text.get_text() for text in axes[2].get_legend().texts] == ["new", "tower"]
    alike = training_plot({"one": [row(1, 4.0, {"new": 1e-3, "tower": 1e-3})]}).figure
    assert alike.axes[2].get_legend() is None and len(alike.axes) == 3 and not alike.legends
    with pytest.raises(ValueError, match="no epoch to draw in 1 runs"):
        training_plot({"one": []})


def quality(unknown, tokens, same, other):
    return SimpleNamespace(unknown=unknown, tokens=np.array(tokens), agreement=(same, other))


def test_captions_stand_by_set_and_modality():
    sets = {"a": {"rgb": quality(0.5, [10, 20, 90], 0.6, 0.2)}, "b": {"rgb": quality(0.031, [5], 0.3, 0.1)}}
    bars, lengths, agreement = captions_plot(sets).figure.axes
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([50, 3.1])
    assert [text.get_text() for text in bars.texts] == ["50", "3.1"]
    assert "77" in lengths.get_title("left") and len(agreement.collections) == 2
    nothing = {"a": {"rgb": quality(0.0, [10, 20], float("nan"), float("nan"))}}
    axes = captions_plot(nothing).figure.axes
    assert len(axes) == 2 and "77" not in axes[1].get_title("left")
    with pytest.raises(ValueError, match="0 caption sets"):
        captions_plot({})
