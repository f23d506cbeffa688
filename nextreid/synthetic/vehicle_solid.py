"""A vehicle's solid before a camera that looks down on the road: what faces it, and where it is seen."""

import math
from collections.abc import Iterable, Sequence

from .figure import VEHICLE, Figure, Pair, Point
from .vehicle_shape import Shape

_STRETCH = 1.3  # narrow views are widened so much, as boxes of all forms are resized to one
_NEAR = 4.0  # distance of the camera in lengths of the vehicle's largest side


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


class Solid(Figure):
    """Projects places of a shape in perspective; what is added later covers what was added before.

    Attributes:
        sides: The sides that are seen: 1 for the left, -1 for the right.
        hidden: The other sides.
    """

    def __init__(self, shape: Shape, yaw: float, pitch: float, aspect: float) -> None:
        super().__init__(VEHICLE, yaw, 1.0)
        self.shape = shape
        self.down, self.up = math.sin(pitch), math.cos(pitch)
        self.far = _NEAR * max(self.shape.length, 2 * self.shape.height)
        self.middle = 0.5 * self.shape.height
        self.eye = (-self.sin * self.up * self.far, self.cos * self.up * self.far, self.down * self.far + self.middle)
        self.stretch = 1.0
        (left, low), (right, high) = self.bounds()
        self.stretch = min(_STRETCH, max(1.0, aspect * (high - low) / (right - left)))
        self.sides = [side for side in (-1, 1) if side * self.eye[0] > self.shape.width / 2]
        self.hidden = [side for side in (-1, 1) if side not in self.sides]

    def bounds(self) -> tuple[Pair, Pair]:
        """Return the lower left and upper right corner of what is seen, in metres."""
        shape = self.shape
        points = [shape.on_side(side, y, z) for side in (-1, 1) for y, z in shape.profile]
        points += [(side * shape.width / 2, y, 0.0) for side in (-1, 1) for y in shape.axles]
        if shape.box is not None:
            points += [*shape.box_corners(-1), *shape.box_corners(1)]
        seen = [self.project(point) for point in points]
        xs, ys = [x for x, _ in seen], [y for _, y in seen]
        return (min(xs), min(ys)), (max(xs), max(ys))

    def project(self, point: Point) -> Pair:
        """Return image x and up of a point, in metres at the vehicle's middle."""
        x, depth = self.flat(point[0], point[1])
        z = point[2] - self.middle
        nearer = self.far / (self.far - depth * self.up - z * self.down)
        return x * nearer * self.stretch, (z * self.up - depth * self.down) * nearer

    def faces(self, points: Sequence[Point], inside: Point) -> tuple[bool, int]:
        """Tell whether a flat outline faces the camera, and the shade of its slope."""
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = points[:3]
        bx, by, bz, cx, cy, cz = bx - ax, by - ay, bz - az, cx - ax, cy - ay, cz - az
        normal = (by * cz - bz * cy, bz * cx - bx * cz, bx * cy - by * cx)
        length = math.hypot(*normal) or 1.0
        center = [sum(values) / len(points) for values in zip(*points, strict=True)]
        outwards = math.copysign(1.0, _dot(normal, [c - i for c, i in zip(center, inside, strict=True)]))
        seen = outwards * _dot(normal, [e - c for e, c in zip(self.eye, center, strict=True)]) > 0
        shade = 3 if outwards * normal[2] > 0.75 * length else 1 if abs(normal[1]) > 0.75 * length else 0
        return seen, shade

    def lay(self, points: Iterable[Point], region: str, shade: int = 0) -> None:
        """Add an outline without asking whether it can be seen."""
        self.polygon([self.project(point) for point in points], 0.0, region, shade)

    def add(self, points: Sequence[Point], inside: Point, region: str) -> None:
        """Add an outline if it faces the camera."""
        seen, shade = self.faces(points, inside)
        if seen:
            self.lay(points, region, shade)

    def patch(self, strip: int, outline: Iterable[Pair], region: str, shade: int = 1) -> None:
        """Add something on a strip of the solid, at places (u, v) of it."""
        self.lay([self.shape.on_strip(strip, u, v) for u, v in outline], region, shade)

    def outline_of(self, strip: int) -> list[Point]:
        """Return the four corners of a strip."""
        return [self.shape.on_strip(strip, u, v) for u, v in ((-1, 0), (1, 0), (1, 1), (-1, 1))]

    def sees(self, strip: int) -> bool:
        """Tell whether a strip faces the camera."""
        y = 0.5 * (self.shape.profile[strip][0] + self.shape.profile[strip + 1][0])
        return self.faces(self.outline_of(strip), (0.0, 0.8 * y, 0.4 * self.shape.height))[0]

    def per_metre(self, strip: int) -> Pair:
        """Return u and v for a metre on a strip."""
        (y0, z0), (y1, z1) = self.shape.profile[strip], self.shape.profile[strip + 1]
        wide = 0.5 * (self.shape.halves[strip] + self.shape.halves[strip + 1])
        return 1 / wide, 1 / math.hypot(y1 - y0, z1 - z0)
