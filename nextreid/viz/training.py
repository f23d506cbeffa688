"""Runs over each other: losses, learning rates and metrics by epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .plot import INK, LINES, Plot, colour_and_line, draw

History = Sequence[Mapping[str, Any]]
METRICS_SHOWN = ("mAP", "rank-1")
_DOTS = {"marker": "o", "markersize": 3}


def training_plot(runs: Mapping[str, History], caption: str = "", *, style: str = "light") -> Plot:
    """Draw runs over each other: each loss, the learning rates by role, and each metric, if any epoch was evaluated.

    Args:
        runs: For each name the rows of its epochs, in order, as ``metrics.jsonl`` holds them.
        caption: What has to be said of the plot.
        style: One of `plot.STYLES`.

    Returns:
        The plot.

    Raises:
        ValueError: If there is no run, or none has an epoch.
    """
    if not any(runs.values()):
        raise ValueError(f"no epoch to draw in {len(runs)} runs")
    losses = _names(row.get("loss", {}) for history in runs.values() for row in history)
    metrics = [
        name
        for name in METRICS_SHOWN
        if any(_metric(row, name) is not None for history in runs.values() for row in history)
    ]
    roles = _names(row.get("lr", {}) for history in runs.values() for row in history)
    longest = max(map(len, runs.values()))
    marks = _DOTS if longest <= 20 else {}

    def paint(figure: Any, axes: Any) -> str:
        left = list(axes)
        for name in losses:
            axis = left.pop(0)
            for number, history in enumerate(runs.values()):
                points = [(row["epoch"], row["loss"][name]) for row in history if name in row.get("loss", {})]
                axis.plot(*_columns(points), **colour_and_line(number), **marks)
            axis.set_title(f"loss: {name}" if name != "total" else "loss")
        if roles:
            axis = left.pop(0)
            several = any(len(set(row.get("lr", {}).values())) > 1 for history in runs.values() for row in history)
            for at, role in enumerate(roles if several else roles[:1]):
                for number, history in enumerate(runs.values()):
                    points = [(row["epoch"], row["lr"][role]) for row in history if role in row.get("lr", {})]
                    line = {"linestyle": LINES[at % len(LINES)]} if several else {}
                    axis.plot(*_columns(points), **{**colour_and_line(number), **line})
                if several:
                    axis.plot([], [], color=INK, linestyle=LINES[at % len(LINES)], label=role)
            if several:
                axis.legend(loc="lower left", borderaxespad=0.1)
            axis.set(title="learning rate", yscale="log")
        for name in metrics:
            axis = left.pop(0)
            for number, history in enumerate(runs.values()):
                points = [(row["epoch"], 100 * found) for row in history if (found := _metric(row, name)) is not None]
                axis.plot(*_columns(points), **colour_and_line(number), **(_DOTS if len(points) <= 20 else {}))
            axis.set_title(f"{name}, %")
        for axis in axes:
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_xlim(0 if longest > 20 else 1 - 0.04 * longest, None)
        if len(runs) > 1:
            for number, name in enumerate(runs):
                axes[0].plot([], [], **colour_and_line(number), **marks, label=name)
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(runs)))
        return caption

    panels = len(losses) + bool(roles) + len(metrics)
    return draw(style, panels, paint, columns=3 if panels in (3, 5, 6) else 4)


def _metric(row: Mapping[str, Any], name: str) -> float | None:
    return row.get("evaluation", {}).get(name)


def _names(groups: Any) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    finite = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    return [x for x, _ in finite], [y for _, y in finite]
