"""Lines over epochs as SVG that stands in a page: no script, no style but classes of the page's own sheet."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 240, 52, 10, 12, 28
_POINTS = 400  # of a line; of longer ones every n-th is drawn, and the last
_COLOURS = 8  # of the sheet; a line keeps that of its place, whichever others have points


class Line(NamedTuple):
    """A name and its points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


def chart(title: str, lines: Sequence[Line], unit: str = "epoch") -> Markup:
    """Draw lines over each other, with a legend that says their last value.

    Args:
        title: Heading.
        lines: Those without a point are left out.
        unit: What x counts.

    Returns:
        A ``figure``, every text escaped; nothing where no line has a point.
    """
    finite = [Line(name, _thinned([p for p in points if all(map(math.isfinite, p))])) for name, points in lines]
    drawn = [(number % _COLOURS, line) for number, line in enumerate(finite) if line.points]
    if not drawn:
        return Markup("")
    xs, ys = zip(*(point for _, line in drawn for point in line.points), strict=True)
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    ticks = _ticks(min(ys), max(ys))
    y_low, y_high = min(ticks[0], min(ys)), max(ticks[-1], max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in ticks:
        y = at(x_low, tick)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x_low, x_high):
        if tick == int(tick) and x_low <= tick <= x_high:
            parts.append(f'<text x="{at(tick, y_low)[0]:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{tick:g}</text>')
    for colour, line in drawn:
        places = [at(*point) for point in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line c{colour}" points="{path}"/>')
        for (x, y), point in zip(places, line.points, strict=True):
            hint = escape(f"{line.name}, {unit} {point[0]:g}: {point[1]:.4g}")
            dot = f'<circle class="dot c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5">'
            parts.append(f"{dot}<title>{hint}</title></circle>")
    legend = "".join(
        f'<li><span class="key c{colour}"></span>{escape(line.name)} <b>{line.points[-1][1]:.4g}</b></li>'
        for colour, line in drawn
    )
    label = escape(f"{title} by {unit}")
    return Markup(
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
        f'<ul class="legend">{legend}</ul></figure>'
    )


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    step = -(-len(points) // _POINTS)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers from the one below `low` to the one above `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
