"""Shapes in body coordinates, turned, sorted by depth and painted as a map of labels."""

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from .scene import Occluder

SUPERSAMPLING = 2

REGION_BITS = 5
SHADES = (1.0, 0.86, 0.72, 1.10)
"""A label is `region | shade << REGION_BITS`; the shade sets limbs and panels off against what they cross."""


class Regions:
    """What is drawn of an object with one material each, and the part that each region belongs to."""

    def __init__(self, parts_of: Mapping[str, str]) -> None:
        self.parts_of = parts_of
        self.parts = tuple(dict.fromkeys(parts_of.values()))
        self.number = {name: number for number, name in enumerate(parts_of)}
        self._part = np.array([self.parts.index(part) for part in parts_of.values()], dtype=np.uint8)

    def part_map(self, labels: np.ndarray) -> np.ndarray:
        """Reduce ``(2H, 2W)`` labels to ``(H, W)`` uint8 indices into `parts`."""
        return self._part[labels[1::SUPERSAMPLING, ::SUPERSAMPLING] % 2**REGION_BITS]

    def count(self, parts: np.ndarray) -> dict[str, int]:
        """Count the pixels of each part in a part map."""
        return dict(zip(self.parts, np.bincount(parts.ravel(), minlength=len(self.parts)).tolist(), strict=True))


PERSON = Regions(
    {
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
)
PARTS = PERSON.parts
"""Parts of a person that a sample's ``truth["parts"]`` holds, by label."""

VEHICLE = Regions(
    {
        "background": "background",
        "body": "body",
        "seam": "body",
        "trim": "body",
        "underbody": "body",
        "hood": "hood",
        "roof": "roof",
        "rack": "roof rack",
        "glass": "windows",
        "sunroof": "windows",
        "sticker": "windows",
        "tire": "wheels",
        "rim": "wheels",
        "headlight": "headlights",
        "taillight": "taillights",
        "grille": "grille",
        "chrome": "grille",
        "badge": "badge",
        "bumper": "bumpers",
        "plate": "plate",
        "characters": "plate",
        "mirror": "mirrors",
        "spoiler": "spoiler",
        "exhaust": "exhaust",
        "cargo": "cargo",
        "occluder": "occluder",
    }
)
VEHICLE_PARTS = VEHICLE.parts
"""Parts of a vehicle that a sample's ``truth["parts"]`` holds, by label."""

Point: TypeAlias = tuple[float, float, float]
"""Left, forward and up from the point between the feet or wheels, in units of the stature, or in metres."""

Pair: TypeAlias = tuple[float, float]
_Points: TypeAlias = list[Pair]
_Disc: TypeAlias = tuple[float, float, float, float]


class Figure:
    """Collects shapes, then paints them from far to near; a larger depth is nearer to the camera.

    A `yaw` of 0 faces the camera, a positive one turns the left side away; `stature` is in pixels of the drawing.
    Points (image x, up) are in units of the stature.
    """

    def __init__(self, regions: Regions, yaw: float, stature: float) -> None:
        self.regions, self.stature = regions, stature
        self.cos, self.sin = math.cos(yaw), math.sin(yaw)
        self.shapes: list[tuple[float, int, _Points, list[_Disc]]] = []

    def paint(self, width: int, height: int, center: float, ground: float) -> np.ndarray:
        """Draw all shapes, the farthest first; at equal depth in the order they were added."""
        image = Image.new("L", (width, height), self.regions.number["background"])
        draw = ImageDraw.Draw(image)
        size = self.stature
        for _, label, outline, discs in sorted(self.shapes, key=lambda shape: shape[0]):
            if outline:
                draw.polygon([(center + x * size, ground - y * size) for x, y in outline], fill=label)
            for x, y, rx, ry in discs:
                cx, cy = center + x * size, ground - y * size
                draw.ellipse((cx - rx * size, cy - ry * size, cx + rx * size, cy + ry * size), fill=label)
        return np.asarray(image)

    def flat(self, left: float, forward: float) -> tuple[float, float]:
        """Turn body axes into image x and depth towards the camera."""
        return left * self.cos + forward * self.sin, forward * self.cos - left * self.sin

    def girth(self, wide: float, deep: float) -> float:
        """Half width of an elliptic cross-section as it is seen."""
        return math.hypot(wide * self.cos, deep * self.sin)

    def polygon(
        self, points: _Points, depth: float, region: str, shade: int = 0, discs: tuple[_Disc, ...] = ()
    ) -> None:
        """Add a polygon, and discs (x, up and both radii) of the same label."""
        self.shapes.append((depth, self.regions.number[region] | shade << REGION_BITS, points, list(discs)))

    def block(self, top: Pair, end: Pair, wide: float, low: float, depth: float, region: str, shade: int = 0) -> None:
        """Add a trapezoid between two points, with its half widths above and below."""
        points = [(top[0] - wide, top[1]), (top[0] + wide, top[1])]
        points += [(end[0] + low, end[1]), (end[0] - low, end[1])]
        self.polygon(points, depth, region, shade)

    def ellipse(self, x: float, y: float, rx: float, ry: float, depth: float, region: str, shade: int = 0) -> None:
        """Add an upright ellipse about a point."""
        self.polygon([], depth, region, shade, ((x, y, rx, ry),))

    def limb(self, start: Point, end: Point, r0: float, r1: float, depth: float, region: str, shade: int = 0) -> None:
        """Add a tapered limb with round ends between two body points."""
        x0, x1 = self.flat(*start[:2])[0], self.flat(*end[:2])[0]
        y0, y1 = start[2], end[2]
        length = math.hypot(x1 - x0, y1 - y0) or 1e-6
        nx, ny = (y1 - y0) / length, (x0 - x1) / length
        sides = [(x0 + nx * r0, y0 + ny * r0), (x1 + nx * r1, y1 + ny * r1)]
        sides += [(x1 - nx * r1, y1 - ny * r1), (x0 - nx * r0, y0 - ny * r0)]
        self.polygon(sides, depth, region, shade, ((x0, y0, r0, r0), (x1, y1, r1, r1)))


def between(start: Point, end: Point, fraction: float) -> Point:
    """Return the point at a fraction of the way from `start` to `end`."""
    x, y, up = (a + fraction * (b - a) for a, b in zip(start, end, strict=True))
    return x, y, up


def draw_occluder(regions: Regions, labels: np.ndarray, occluder: Occluder) -> np.ndarray:
    """Return a copy of the labels with an occluder in front."""
    image = Image.fromarray(labels)
    draw = ImageDraw.Draw(image)
    width, height = image.size
    x, y, fill = occluder.x * width, occluder.y * height, regions.number["occluder"]
    if occluder.kind == "wall":
        draw.rectangle((0, y, width, height), fill=fill)
    elif occluder.kind == "post":
        half = occluder.size * width
        draw.rectangle((x - half, 0, x + half, height), fill=fill)
    else:
        radius = occluder.size * height
        for step in range(5):
            angle = 1.3 * step
            cx, cy = x + 0.5 * radius * math.cos(angle), y + 0.45 * radius * math.sin(angle)
            draw.ellipse((cx - 0.6 * radius, cy - 0.6 * radius, cx + 0.6 * radius, cy + 0.6 * radius), fill=fill)
        draw.rectangle((x - 0.7 * radius, y, x + 0.7 * radius, height), fill=fill)
    return np.asarray(image)
