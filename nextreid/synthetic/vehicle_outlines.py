"""Outlines of what is on a vehicle: lamps, windows, wheels, and the cells of characters."""

import math
from collections.abc import Sequence
from itertools import pairwise

from .figure import Pair, Point

_CIRCLE = [(math.cos(k * math.tau / 13), math.sin(k * math.tau / 13)) for k in range(13)]


def rect(u0: float, u1: float, v0: float, v1: float) -> list[Pair]:
    """An upright rectangle between two places each way."""
    return [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]


def rect_at(middle: Point, wide: float, tall: float) -> list[Point]:
    """A rectangle across the vehicle about a point."""
    x, y, z = middle
    return [(x + a * wide, y, z + b * tall) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]


def ellipse(u: float, v: float, du: float, dv: float) -> list[Pair]:
    """An ellipse about (u, v)."""
    return [(u + du * a, v + dv * b) for a, b in _CIRCLE]


def disc(x: float, y: float, radius: float, up: float) -> list[Point]:
    """A disc beside the vehicle, whose middle is `up` from the ground."""
    return [(x, y + a, up + b) for a, b in ellipse(0.0, 0.0, radius, radius)]


def clipped(half: float, low: float, high: float, cut: float) -> list[Pair]:
    """A rectangle about u = 0 with its corners cut."""
    u, v = cut * half * 0.5, cut * (high - low)
    right = [(half - u, low), (half, low + v), (half, high - v), (half - u, high)]
    return right + [(-a, b) for a, b in reversed(right)]


def rounded(half: float, low: float, high: float, style: str) -> list[Pair]:
    """A window about u = 0, ``"curved"`` or ``"flat"``."""
    return clipped(half, low, high, 0.30 if style == "curved" else 0.04)


def lamp(shape: str, u: float, v: float, half: float, tall: float) -> list[Pair]:
    """The outline of a lamp about (u, v); the outer side is the one away from u = 0."""
    out = math.copysign(half, u)
    if shape == "oval":
        return ellipse(u, v, half, 0.75 * tall)
    if shape == "round":
        return ellipse(u, v, 0.62 * half, tall)
    if shape == "angular":
        return [
            (u + out, v + tall),
            (u + 0.9 * out, v - 0.5 * tall),
            (u - out, v - 0.1 * tall),
            (u - 0.6 * out, v + 0.5 * tall),
        ]
    return rect(u - half, u + half, v - 0.7 * tall, v + 0.7 * tall)


def smoothed(points: Sequence[Pair]) -> list[Pair]:
    """Cut every corner of an outline once."""
    cut = []
    for (y0, z0), (y1, z1) in pairwise([*points, points[0]]):
        cut += [(0.82 * y0 + 0.18 * y1, 0.82 * z0 + 0.18 * z1), (0.18 * y0 + 0.82 * y1, 0.18 * z0 + 0.82 * z1)]
    return cut


def runs(bits: str) -> list[tuple[int, int]]:
    """Return start and end of each run of ones."""
    edges = [k for k, (a, b) in enumerate(pairwise(f"0{bits}0")) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))
