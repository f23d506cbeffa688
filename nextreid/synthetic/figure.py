"""Shapes in body coordinates, turned, sorted by depth and painted as a map of labels."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 2

REGIONS: dict[str, str] = {
    "background": "background",
    "skin": "skin",
    "features": "skin",
    "hair": "hair",
    "upper": "upper",
    "upper_trim": "upper",
    "inner": "upper",
    "lower": "lower",
    "lower_trim": "lower",
    "shoe": "footwear",
    "sole": "footwear",
    "glasses": "glasses",
    "backpack": "backpack",
    "handbag": "handbag",
    "suitcase": "suitcase",
    "held": "held",
    "umbrella": "held",
    "occluder": "occluder",
}
"""What is drawn with one material each, and the part that it belongs to."""

PARTS: tuple[str, ...] = tuple(dict.fromkeys(REGIONS.values()))
"""Parts of a person that a sample's ``truth["parts"]`` holds, by label."""

REGION_BITS = 5
SHADES = (1.0, 0.86, 0.72, 1.10)
"""A label is `region | shade << REGION_BITS`; the shade sets limbs off against what they cross."""

REGION = {name: number for number, name in enumerate(REGIONS)}
_PART_OF_LABEL = np.array(
    [
        PARTS.index(list(REGIONS.values())[label % 2**REGION_BITS]) if label % 2**REGION_BITS < len(REGIONS) else 0
        for label in range(256)
    ],
    dtype=np.uint8,
)

Point: TypeAlias = tuple[float, float, float]
"""Left, forward and up from the point between the feet, in units of the stature."""

Shape: TypeAlias = Callable[[ImageDraw.ImageDraw, float, float, int], None]


def part_map(labels: np.ndarray) -> np.ndarray:
    """Reduce the ``(2H, 2W)`` labels of `draw_person` to ``(H, W)`` uint8 indices into `PARTS`."""
    return _PART_OF_LABEL[labels[1::SUPERSAMPLING, ::SUPERSAMPLING]]


class Figure:
    """Collects shapes, then paints them from far to near.

    A `yaw` of 0 faces the camera, a positive one turns the left side away; `stature` is in pixels of the drawing.
    """

    def __init__(self, yaw: float, stature: float) -> None:
        self.stature = stature
        self.cos, self.sin = math.cos(yaw), math.sin(yaw)
        self.shapes: list[tuple[float, int, Shape]] = []

    def paint(self, width: int, height: int, center: float, ground: float) -> np.ndarray:
        """Draw all shapes, the farthest first; at equal depth in the order they were added."""
        image = Image.new("L", (width, height), REGION["background"])
        draw = ImageDraw.Draw(image)
        for _, label, shape in sorted(self.shapes, key=lambda shape: shape[0]):
            shape(draw, center, ground, label)
        return np.asarray(image)

    def flat(self, left: float, forward: float) -> tuple[float, float]:
        """Turn body axes into image x and depth towards the camera."""
        return left * self.cos + forward * self.sin, forward * self.cos - left * self.sin

    def girth(self, wide: float, deep: float) -> float:
        """Half width of an elliptic cross-section as it is seen."""
        return math.hypot(wide * self.cos, deep * self.sin)

    def add(self, depth: float, region: str, shape: Shape, shade: int = 0) -> None:
        """Add a shape; a larger depth is nearer to the camera."""
        self.shapes.append((depth, REGION[region] | shade << REGION_BITS, shape))

    def polygon(self, points: list[tuple[float, float]], depth: float, region: str, shade: int = 0) -> None:
        """Add a polygon of points (image x, up), both in units of the stature."""
        size = self.stature

        def shape(draw: ImageDraw.ImageDraw, center: float, ground: float, label: int) -> None:
            draw.polygon([(center + x * size, ground - y * size) for x, y in points], fill=label)

        self.add(depth, region, shape, shade)

    def block(
        self,
        top: tuple[float, float],
        bottom: tuple[float, float],
        wide: float,
        low_wide: float,
        depth: float,
        region: str,
        shade: int = 0,
    ) -> None:
        """Add a trapezoid between two (image x, up) points, with its half widths above and below."""
        points = [(top[0] - wide, top[1]), (top[0] + wide, top[1])]
        points += [(bottom[0] + low_wide, bottom[1]), (bottom[0] - low_wide, bottom[1])]
        self.polygon(points, depth, region, shade)

    def ellipse(self, x: float, y: float, rx: float, ry: float, depth: float, region: str, shade: int = 0) -> None:
        """Add an upright ellipse about (image x, up)."""
        size = self.stature

        def shape(draw: ImageDraw.ImageDraw, center: float, ground: float, label: int) -> None:
            cx, cy = center + x * size, ground - y * size
            draw.ellipse((cx - rx * size, cy - ry * size, cx + rx * size, cy + ry * size), fill=label)

        self.add(depth, region, shape, shade)

    def limb(self, start: Point, end: Point, r0: float, r1: float, depth: float, region: str, shade: int = 0) -> None:
        """Add a tapered limb with round ends between two body points."""
        x0, x1 = self.flat(*start[:2])[0], self.flat(*end[:2])[0]
        y0, y1, size = start[2], end[2], self.stature
        length = math.hypot(x1 - x0, y1 - y0) or 1e-6
        nx, ny = (y1 - y0) / length, (x0 - x1) / length
        sides = [(x0 + nx * r0, y0 + ny * r0), (x1 + nx * r1, y1 + ny * r1)]
        sides += [(x1 - nx * r1, y1 - ny * r1), (x0 - nx * r0, y0 - ny * r0)]

        def shape(draw: ImageDraw.ImageDraw, center: float, ground: float, label: int) -> None:
            draw.polygon([(center + x * size, ground - y * size) for x, y in sides], fill=label)
            for x, y, r in ((x0, y0, r0), (x1, y1, r1)):
                cx, cy = center + x * size, ground - y * size
                draw.ellipse((cx - r * size, cy - r * size, cx + r * size, cy + r * size), fill=label)

        self.add(depth, region, shape, shade)


def between(start: Point, end: Point, fraction: float) -> Point:
    """Return the point at a fraction of the way from `start` to `end`."""
    x, y, up = (a + fraction * (b - a) for a, b in zip(start, end, strict=True))
    return x, y, up
