"""What scores say: histograms of same and different identities, the errors they trade, and calibrated probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from nextreid.retrieval.calibration import Curve

from .plot import DIFFERENT, FAINT, INK, SAME, Plot, colour_and_line, draw

_SHOWN_BINS = 60
_TICKS = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
_POINTS = 500  # of a DET curve


@dataclass(frozen=True)
class ScoreCounts:
    """Scores of many pairs, counted in fine steps, so that any number of pairs takes the same room.

    Attributes:
        edges: ``(n + 1,)`` ascending.
        same: Pairs of one identity with a score in each step, ``(n,)``.
        different: Pairs of two identities, ``(n,)``.
    """

    edges: np.ndarray
    same: np.ndarray
    different: np.ndarray

    def error_rates(self) -> tuple[np.ndarray, np.ndarray]:
        """False match and false non-match rate ``(n + 1,)`` of the threshold at each edge: pairs at or above pass."""
        passed = np.append(np.cumsum(self.different[::-1])[::-1], 0)
        missed = np.append(0, np.cumsum(self.same))
        return passed / max(1, self.different.sum()), missed / max(1, self.same.sum())

    def equal_error_rate(self) -> float:
        """Where both rates are equal, by a straight line between the two thresholds around it."""
        match, miss = self.error_rates()
        at = int(np.argmax(miss >= match))
        if at == 0:
            return float(miss[0])
        before, after = match[at - 1] - miss[at - 1], match[at] - miss[at]
        part = before / (before - after) if before > after else 1.0
        return float(miss[at - 1] + part * (miss[at] - miss[at - 1]))


def scores_plot(
    counts: Mapping[str, ScoreCounts], curves: Mapping[str, Curve], caption: str = "", *, style: str = "light"
) -> Plot:
    """Draw a histogram for each model, with its calibrated thresholds, all DET curves, and all reliability curves.

    The axes of the DET curve (detection error trade-off) are those of Martin et al. (1997): two normal distributions of
    scores give a straight line.

    Args:
        counts: Scores by the model's name.
        curves: Calibrations, as far as there are any, by the model's name; without any the last panel is left out.
        caption: What has to be said of the plot.
        style: One of `plot.STYLES`.

    Returns:
        The plot.

    Raises:
        ValueError: If there is no model, or one without pairs of either kind.
    """
    for name, count in counts.items():
        if not (count.same.sum() and count.different.sum()):
            raise ValueError(
                f"{name} has {int(count.same.sum())} pairs of one identity and {int(count.different.sum())} of two: "
                "both are needed"
            )
    if not counts:
        raise ValueError("there is no model to draw the scores of")

    def paint(figure: Any, axes: Any) -> str:
        for axis, (name, count) in zip(axes, counts.items(), strict=False):
            _histogram(axis, name, count, curves.get(name))
        _trade_off(axes[len(counts)], counts)
        if curves:
            _reliability(axes[len(counts) + 1], {name: curves[name] for name in counts if name in curves}, list(counts))
        return caption

    panels = len(counts) + 1 + bool(curves)
    return draw(style, panels, paint, columns=3 if panels != 4 else 4)


def _histogram(axis: Any, name: str, count: ScoreCounts, curve: Curve | None) -> None:
    filled = np.flatnonzero(count.same + count.different)
    low, high = count.edges[filled[0]], count.edges[filled[-1] + 1]
    bins = np.linspace(low, high, _SHOWN_BINS + 1)
    middles = (count.edges[:-1] + count.edges[1:]) / 2
    for values, colour, label in ((count.same, SAME, "same identity"), (count.different, DIFFERENT, "different")):
        height, _ = np.histogram(middles, bins, weights=values)
        height = height / (height.sum() * np.diff(bins))
        solid = colour == SAME
        if solid:
            axis.stairs(height, bins, fill=True, color=colour, alpha=0.3, linewidth=0)
        axis.stairs(height, bins, color=colour, linestyle="-" if solid else (0, (3, 1)), label=label)
    axis.set(title=name, xlabel="score (cosine)", ylabel="density", yticks=[], xlim=(low, high))
    axis.grid(False)
    top = axis.get_ylim()[1]
    axis.set_ylim(0, 1.3 * top)
    for threshold in curve.thresholds if curve else ():
        if threshold.score is None:
            continue
        height = 1.0 + 0.09 * sum(t.false_match_rate > threshold.false_match_rate for t in curve.thresholds)  # type: ignore[union-attr]
        axis.plot([threshold.score] * 2, [0, 0.94 * height * top], color=INK, linewidth=0.8)
        before = threshold.score > (low + high) / 2
        axis.annotate(
            f"FMR {100 * threshold.false_match_rate:g} %",
            (threshold.score, 0.94 * height * top),
            (-3 if before else 3, 0),
            textcoords="offset points",
            ha="right" if before else "left",
            va="top",
            fontsize="x-small",
        )
    axis.legend(loc="upper left", borderaxespad=0.1, handlelength=1.6)


def _trade_off(axis: Any, counts: Mapping[str, ScoreCounts]) -> None:
    """Draw the DET curves."""
    lowest = 0.05
    for number, (name, count) in enumerate(counts.items()):
        match, miss = count.error_rates()
        inside = np.flatnonzero((match > 0) & (match < 1) & (miss > 0) & (miss < 1))
        equal = count.equal_error_rate()
        label = f"{name}\nEER {100 * equal:.1f} %"
        if not len(inside):  # the scores do not overlap
            axis.plot([], [], **colour_and_line(number), label=label)
            continue
        thin = inside[np.unique(np.linspace(0, len(inside) - 1, _POINTS).astype(int))]
        axis.plot(_probit(match[thin]), _probit(miss[thin]), **colour_and_line(number), label=label)
        if 0 < equal < 1:
            axis.plot(*[_probit([equal])] * 2, "o", color=colour_and_line(number)["color"], markersize=3.5)
        lowest = min(lowest, max(match[inside].min(), 1e-4), max(miss[inside].min(), 1e-4))
    ticks = [tick for tick in _TICKS if tick >= lowest * 0.9]
    low, high = _probit([min(lowest, ticks[0]), 0.9])
    axis.plot([low, 0], [low, 0], color=FAINT, linewidth=0.6, linestyle=":")  # where both errors are equal, to a half
    for axis_of in (axis.xaxis, axis.yaxis):
        axis_of.set_ticks(_probit(ticks), [f"{100 * tick:g}" for tick in ticks])
    axis.set(xlim=(low, high), ylim=(low, high), xlabel="false matches, %", ylabel="false non-matches, %")
    axis.set_title("DET")
    axis.legend(loc="upper right", borderaxespad=0.1)


def _reliability(axis: Any, curves: Mapping[str, Curve], order: Sequence[str]) -> None:
    axis.plot([0, 1], [0, 1], color=FAINT, linewidth=0.6, linestyle=":")
    for name, curve in curves.items():
        mean, share, pairs = np.array(curve.reliability, float).reshape(-1, 3).T
        look = colour_and_line(order.index(name))
        axis.plot(mean, share, **look, linewidth=0.8, label=f"{name}\nECE {curve.ece:.3f}")
        size = 2 + 6 * np.log10(np.maximum(pairs, 1))
        axis.scatter(mean, share, size, color=look["color"], linewidths=0, clip_on=False, zorder=3)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="calibrated probability", ylabel="share of the same identity")
    axis.set_title("Reliability, held out")
    axis.legend(loc="upper left", borderaxespad=0.1)


def _probit(shares: Any) -> list[float]:
    return [NormalDist().inv_cdf(float(share)) for share in shares]
