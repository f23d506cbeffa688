"""A vehicle as a map of part labels: a solid seen from above the road, with lights, windows, wheels and plates."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np

from .figure import SUPERSAMPLING, Pair, Point
from .identity import Identity
from .scene import Camera, Frame
from .vehicle import VehicleBody
from .vehicle_marks import BADGES, GLYPHS
from .vehicle_outlines import clipped, disc, ellipse, lamp, rect, rect_at, rounded, runs, smoothed
from .vehicle_shape import (
    BUMPER,
    DECK,
    FACE,
    HOOD,
    REAR_BUMPER,
    REAR_WINDOW,
    STRIPS,
    TAIL,
    WINDSCREEN,
    Shape,
)
from .vehicle_solid import Solid

_FILL = 0.80  # of the image, in the direction that is filled more
_PLATE = (0.24, 0.085)  # half width and half height in metres


def draw_vehicle(
    identity: Identity[VehicleBody], frame: Frame, camera: Camera, img_size: tuple[int, int]
) -> np.ndarray:
    """Draw the ``(2H, 2W)`` uint8 labels of one vehicle, unoccluded, as large as the image allows."""
    height, width = img_size[0] * SUPERSAMPLING, img_size[1] * SUPERSAMPLING
    vehicle = _Vehicle(identity, frame, camera.pitch, width / height)
    (left, low), (right, high) = vehicle.bounds()
    size = _FILL * min(width / (right - left), height / (high - low)) * camera.scale * frame.zoom
    vehicle.stature = size
    center = width * (0.5 + frame.dx) - 0.5 * (left + right) * size
    return vehicle.paint(width, height, center, height * (0.53 + frame.dy) + 0.5 * (low + high) * size)


class _Vehicle(Solid):
    """The solid and all that is on it, added from far to near."""

    def __init__(self, identity: Identity[VehicleBody], frame: Frame, pitch: float, aspect: float) -> None:
        self.body, self.is_a, self.frame = identity.body, identity.attributes, frame
        self.type = self.is_a["vehicle_type"]
        shape = Shape(self.type, self.body, self.is_a["roof_type"] == "sloped")
        super().__init__(shape, frame.yaw, pitch, aspect)
        self._wheels()
        self._underbody()
        boxed = self.shape.box is not None
        if self.cos > 0:
            self._spoiler()
            if boxed:
                self._box()
        for side in self.hidden:
            self._mirror(side)
        self._solid()
        self._front()
        self._rear()
        for side in self.sides:
            self._side(side)
        for side in (*self.hidden, *self.sides):
            self._rack(side)
        if self.cos <= 0:
            self._spoiler()
            if boxed:
                self._box()
        for side in self.sides:
            self._mirror(side)

    # --- what carries the vehicle

    def _wheels(self) -> None:
        wide = 0.24 if self.type not in ("bus", "truck") else 0.34
        for side in (*self.hidden, *self.sides):
            for y in self.shape.axles:
                for step in range(3):
                    x = side * (self.shape.width / 2 - 0.05 - wide * (2 - step) / 2)
                    self.lay(disc(x, y, self.shape.wheel, self.shape.wheel), "tire", 1)

    def _underbody(self) -> None:
        shape = self.shape
        low, high = 0.55 * shape.clearance, shape.clearance + 0.25
        x, front, rear = 0.44 * shape.width, 0.46 * shape.length, -0.46 * shape.length
        corners = [(x, front), (-x, front), (-x, rear), (x, rear)]
        for (x0, y0), (x1, y1) in pairwise([*corners, corners[0]]):
            self.add([(x0, y0, low), (x1, y1, low), (x1, y1, high), (x0, y0, high)], (0, 0, 0.2), "underbody")

    def _solid(self) -> None:
        shape = self.shape
        names = {"bumper": "bumper", "rear bumper": "bumper", "hood": "hood", "roof": "roof"}
        inside = (0.0, 0.0, 0.45 * shape.height)
        for side in self.sides:
            profile = [shape.on_side(side, y, z) for y, z in shape.profile]
            self.lay([*profile[:4], *profile[7:]], "body")
            self.lay(profile[3:8], "roof" if self.body.livery == "two-tone" else "body")
        for strip, name in enumerate(STRIPS):
            region = names.get(name, "body")
            if self.type == "pickup truck" and strip == DECK:
                region = "cargo"
            points = self.outline_of(strip)
            y = sum(point[1] for point in points) / 4
            if self.type != "truck" or strip <= REAR_WINDOW or strip == REAR_BUMPER:
                self.add(points, (0.0, 0.8 * y, inside[2]), region)

    def _box(self) -> None:
        left, right = self.shape.box_corners(1), self.shape.box_corners(-1)
        middle = tuple(float(v) for v in np.mean([*left, *right], axis=0))
        inside = (middle[0], middle[1], middle[2])
        for side, corners in ((1, left), (-1, right)):
            self.add(corners, inside, "cargo")
            if side in self.sides:
                self._livery(partial(_beside, corners[0][0]))
        for a, b in ((0, 3), (1, 2), (3, 2)):
            self.add([left[a], left[b], right[b], right[a]], inside, "cargo")
        if self.cos < 0:  # the doors
            rear = [left[0], left[3], right[3], right[0]]
            if self.faces(rear, inside)[0]:
                (x, y, low), high = left[0], left[3][2]
                self.lay([(0.02, y, low), (0.02, y, high), (-0.02, y, high), (-0.02, y, low)], "seam", 1)
                for u in (0.45, -0.45):
                    self.lay(rect_at((u * x, y, 0.5 * (low + high)), 0.02, 0.4 * (high - low)), "chrome", 1)

    # --- front and rear

    def _front(self) -> None:
        if self.sees(WINDSCREEN):
            self.patch(WINDSCREEN, rounded(0.90, 0.05, 0.95, self.is_a["window_style"]), "glass", 0)
            for place in self.body.stickers:
                u = 0.78 - 0.3 * place
                self.patch(WINDSCREEN, rect(u, u - 0.09, 0.74, 0.86), "sticker", 0)
        if self.is_a["roof_type"] == "sunroof" and self.faces(self.outline_of(4), (0, 0, self.middle))[0]:
            self.patch(4, rect(-0.6, 0.6, 0.1, 0.9), "sunroof", 0)
            self.patch(5, rect(-0.6, 0.6, 0.0, 0.5), "sunroof", 0)
        if self.sees(HOOD) and self.type not in ("bus", "truck"):
            for u in (0.55, -0.55):
                self.patch(HOOD, [(u, 0.08), (u + 0.03, 0.08), (0.8 * u + 0.03, 0.95), (0.8 * u, 0.95)], "seam", 0)
        if not self.sees(FACE):
            return
        self._grille()
        grow = self.body.lamp
        for u in (0.72, -0.72):
            outline = lamp(self.is_a["headlights_shape"], u, 0.66, 0.22 * grow, 0.22 * grow)
            self.patch(FACE, outline, "headlight", 3)
        for u in (0.72, -0.72):  # fog lamps
            self.patch(BUMPER, ellipse(u, 0.55, 0.07, 0.16), "grille")
        self._damage(BUMPER)
        self._plate(BUMPER, 0.52, 1)
        self._badge(FACE, 0.80, 1)

    def _grille(self) -> None:
        shape, cut = self.is_a["front_grille_shape"], {"rounded": 0.35, "sharp": 0.0, "straight": 0.15}
        edge = cut[self.is_a["front_grille_edges"]]
        outlines: dict[str, list[list[Pair]]] = {
            "horizontal": [clipped(0.44, 0.45, 0.86, edge)],
            "vertical": [[(u + du, v) for du, v in clipped(0.17, 0.22, 0.90, edge)] for u in (0.20, -0.20)],
            "hexagonal": [[(0.30, 0.05), (0.46, 0.5), (0.36, 0.95), (-0.36, 0.95), (-0.46, 0.5), (-0.30, 0.05)]],
            "angular": [[(0.26, 0.10), (0.48, 0.90), (-0.48, 0.90), (-0.26, 0.10)]],
        }
        for outline in outlines[shape]:
            middle = [sum(part) / len(outline) for part in zip(*outline, strict=True)]
            frame = [(middle[0] + 1.12 * (u - middle[0]), middle[1] + 1.12 * (v - middle[1])) for u, v in outline]
            self.patch(FACE, frame, "chrome", 0)
            self.patch(FACE, outline, "grille", 0)
            low, high = min(v for _, v in outline), max(v for _, v in outline)
            wide = 0.8 * (max(u for u, _ in outline) - middle[0])
            if shape != "vertical":
                for step in (0.36, 0.68):
                    v = low + step * (high - low)
                    self.patch(FACE, rect(middle[0] - wide, middle[0] + wide, v, v + 0.06), "chrome", 1)
            else:
                for step in (-0.5, 0.0, 0.5):
                    u = middle[0] + step * wide
                    self.patch(FACE, rect(u - 0.015, u + 0.015, low + 0.06, high - 0.06), "chrome", 1)

    def _rear(self) -> None:
        if self.sees(REAR_WINDOW) and self.type != "truck":
            self.patch(REAR_WINDOW, rounded(0.86, 0.08, 0.88, self.is_a["window_style"]), "glass", 0)
        if not self.sees(TAIL):
            return
        grow = self.body.lamp
        tail = REAR_BUMPER if self.type == "truck" else TAIL
        for u in (0.76, -0.76):
            outline = lamp(self.is_a["taillights_shape"], u, 0.34, 0.17 * grow, 0.26 * grow)
            self.patch(tail, outline, "taillight", 0)
        if self.type in ("pickup truck", "hatchback", "SUV", "van"):
            self.patch(TAIL, rect(-0.92, 0.92, 0.02, 0.05), "seam")
        for u in {"single": (0.6,), "dual": (0.6, -0.6)}.get(self.is_a["exhaust_type"], ()):
            sideways, along = self.per_metre(REAR_BUMPER)
            self.patch(REAR_BUMPER, ellipse(u, 0.80, 0.06 * sideways, 0.05 * along), "exhaust", 0)
        self._damage(REAR_BUMPER)
        self._plate(REAR_BUMPER if self.type in ("truck", "bus") else TAIL, 0.66, -1)
        if self.type != "truck":
            self._badge(TAIL, 0.26, -1)

    def _damage(self, strip: int) -> None:
        if self.is_a["bumper_condition"] == "damaged" and self.sees(strip):
            self.patch(strip, [(0.35, 0.0), (0.5, 0.7), (0.7, 0.4), (0.85, 0.8), (0.9, 0.0)], "underbody", 0)

    def _plate(self, strip: int, v: float, reading: int) -> None:
        """Add a plate whose characters run along `reading`, 1 to the vehicle's left."""
        if not self.sees(strip):
            return
        sideways, along = self.per_metre(strip)
        wide, tall = _PLATE[0] * sideways, _PLATE[1] * along
        up = 1 if strip == BUMPER else -1  # v runs up at the front and down at the rear
        self.patch(strip, rect(-wide, wide, v - tall, v + tall), "plate", 0)
        step, row = 1.84 * wide / 27, 1.5 * tall / 5
        for index, character in enumerate(self.body.plate):
            for r, bits in enumerate(GLYPHS[character]):
                for start, end in runs(bits):
                    u0, u1 = (reading * (-0.92 * wide + step * (4 * index + column)) for column in (start, end))
                    v1 = v + up * (0.75 * tall - row * r)
                    self.patch(strip, rect(u0, u1, v1 - up * row, v1), "characters", 0)

    def _badge(self, strip: int, v: float, reading: int) -> None:
        sideways, along = self.per_metre(strip)
        size = 0.09 if self.type not in ("bus", "truck") else 0.15
        cell = 2 * size / 5
        up = 1 if strip == FACE else -1
        for r, bits in enumerate(BADGES[self.is_a["branding"]]):
            for start, end in runs(bits):
                u0, u1 = (reading * (column * cell - size) * sideways for column in (start, end))
                v1 = v + up * (size - r * cell) * along
                self.patch(strip, rect(u0, u1, v1 - up * cell * along, v1), "badge", 0)

    # --- the sides

    def _side(self, side: int) -> None:
        shape, boxed = self.shape, self.shape.box is not None

        def at(y: float, z: float) -> Point:
            return shape.on_side(side, y, z)

        self._windows(at)
        if not boxed:
            self._livery(at)
        self._doors(at)
        front, rear = shape.length / 2, -shape.length / 2
        nose, grow = shape.profile[2][1], self.body.lamp
        z = nose - 0.12
        self.lay(
            [at(front - 0.06, z + 0.08 * grow), at(front - 0.42 * grow, z + 0.09), at(front - 0.04, z - 0.1 * grow)],
            "headlight",
            1,
        )
        if not boxed:
            z = shape.profile[8][1] - 0.16
            tail = [(0.02, 0.10 * grow), (0.36 * grow, 0.08), (0.30 * grow, -0.06), (0.02, -0.13 * grow)]
            self.lay([at(rear + y, z + dz) for y, dz in tail], "taillight", 1)
        self._rolling(side)

    def _windows(self, at: Callable[[float, float], Point]) -> None:
        shape = self.shape
        outline = shape.profile[3:8]
        middle = np.mean([outline[0], outline[1], outline[3], outline[4]], axis=0)
        shrink = (0.94, 0.86) if self.type == "bus" else (0.70, 0.70) if self.type == "truck" else (0.86, 0.76)
        glass = [(middle[0] + shrink[0] * (y - middle[0]), middle[1] + shrink[1] * (z - middle[1])) for y, z in outline]
        if self.is_a["window_style"] == "curved":
            glass = smoothed(glass)
        self.lay([at(y, z + 0.01) for y, z in glass], "glass")
        first, last = max(y for y, _ in glass), min(y for y, _ in glass)
        low, high = min(z for _, z in glass) - 0.02, max(z for _, z in glass) + 0.06
        region = "roof" if self.body.livery == "two-tone" else "body"
        count = shape.form.pillars
        places = [first + (last - first) * (k + 1) / (count + 1) for k in range(count)]
        half = 0.06 if self.type == "bus" else 0.045
        for y in places:
            self.lay([at(y - half, low), at(y + half, low), at(y + half, high), at(y - half, high)], region, 1)
        if self.type == "van" and self.body.livery in ("panel", "stripe"):  # it carries goods
            y0 = places[0]
            self.lay([at(y0, low), at(last - 0.05, low), at(last - 0.05, high), at(y0, high)], region)

    def _livery(self, at: Callable[[float, float], Point]) -> None:
        shape, body = self.shape, self.body
        front, rear = 0.47 * shape.length, -0.47 * shape.length
        low, high = shape.clearance + 0.04, shape.belt - 0.06
        if shape.box is not None:
            (rear, front), low, high = shape.box, 1.1, 2.95
            rear, front = rear + 0.05, front - 0.05
        if body.livery == "sill":
            self.lay([at(y, z) for y, z in rect(rear, front, low, low + 0.30 * (high - low))], "trim", 1)
        elif body.livery == "stripe":
            z, half = low + (0.35 + 0.45 * body.livery_at) * (high - low), 0.07 * (high - low)
            self.lay([at(y, z) for y, z in rect(rear, front, z - half, z + half)], "trim")
        elif body.livery == "panel":
            y, half = rear + (0.35 + 0.3 * body.livery_at) * (front - rear), 0.16 * (front - rear)
            low, high = low + 0.18 * (high - low), high - 0.12 * (high - low)
            self.lay([at(y + dy, z) for dy, z in rect(-half, half, low, high)], "trim")

    def _doors(self, at: Callable[[float, float], Point]) -> None:
        shape = self.shape
        cowl, deck = shape.profile[3], shape.profile[7]
        low, high = shape.clearance + 0.10, shape.belt
        if self.type == "bus":
            places, handles = [0.36 * shape.length, 0.26 * shape.length, 0.0, -0.1 * shape.length], []
            high = shape.height - 0.35
        elif self.type == "truck":
            places, handles = [cowl[0] - 0.25, deck[0] + 0.12], [deck[0] + 0.35]
        else:
            span = cowl[0] - 0.1 - deck[0]
            count = self.body.doors if self.type != "van" else 2
            places = [cowl[0] - 0.1 - span * k / (count + 0.35) for k in range(count + 1)]
            handles = [place + 0.2 for place in places[1:]]
        for y in places:
            self.lay([at(y, z) for y, z in rect(y - 0.018, y + 0.018, low, high)], "seam")
        for y in handles:
            self.lay([at(y, z) for y, z in rect(y - 0.10, y + 0.06, high - 0.16, high - 0.11)], "chrome", 1)

    def _rolling(self, side: int) -> None:
        """Add the wheels of a side that is seen, in their arches."""
        shape, radius = self.shape, self.shape.wheel
        x = side * shape.width / 2
        sporty = self.is_a["tires_type"] == "street"
        for y in shape.axles:
            self.lay(disc(x * 0.995, y, radius * 1.16, radius), "underbody")
            self.lay(disc(x, y, radius, radius), "tire")
            rim = radius * (0.74 if sporty else 0.62)
            self.lay(disc(x, y, rim, radius), "rim")
            for spoke in range(self.body.spokes):
                angle = self.frame.phase + (spoke + 0.5) * 2 * math.pi / self.body.spokes
                reach = (0.35, 0.92)
                turn = math.pi / self.body.spokes * 0.42
                wedge = [(reach[0], -0.5 * turn), (reach[1], -turn), (reach[1], turn), (reach[0], 0.5 * turn)]
                self.lay(
                    [(x, y + rim * r * math.cos(angle + a), radius + rim * r * math.sin(angle + a)) for r, a in wedge],
                    "tire",
                )

    # --- what sticks out

    def _mirror(self, side: int) -> None:
        if self.is_a["side_mirror_condition"] == "missing":
            return
        shape = self.shape
        y, z = shape.profile[3][0] - 0.30, shape.belt + 0.10
        tall = 0.08
        if self.type in ("bus", "truck"):
            y, z, tall = shape.profile[3][0] + 0.05, shape.belt + 0.55, 0.22
        inner = shape.half(y, shape.belt)
        inside = (side * (inner + 0.11), y, z)
        x0, x1 = side * (inner - 0.02), side * (inner + 0.24)
        for dy in (-0.07, 0.07):
            self.add(
                [(x0, y + dy, z - tall), (x1, y + dy, z - tall), (x1, y + dy, z + tall), (x0, y + dy, z + tall)],
                inside,
                "mirror",
            )
        self.add(
            [(x1, y - 0.07, z - tall), (x1, y + 0.07, z - tall), (x1, y + 0.07, z + tall), (x1, y - 0.07, z + tall)],
            inside,
            "mirror",
        )

    def _rack(self, side: int) -> None:
        if self.is_a["roof_rack"] != "present":
            return
        shape = self.shape
        front, rear = shape.profile[4][0] - 0.12, shape.profile[6][0] + 0.12
        x, low, high = side * 0.86 * shape.half(0.0, shape.height), shape.height - 0.02, shape.height + 0.09
        self.lay([(x, y, z) for y, z in rect(rear, front, high - 0.05, high)], "rack")
        for y in (front - 0.05, 0.5 * (front + rear), rear + 0.05):
            self.lay([(x, y + dy, z) for dy, z in rect(-0.05, 0.05, low, high)], "rack")
        if side == 1:
            for fraction in (0.25, 0.75):
                y = rear + fraction * (front - rear)
                self.lay(
                    [(-x, y - 0.04, high), (x, y - 0.04, high), (x, y + 0.04, high), (-x, y + 0.04, high)], "rack", 3
                )

    def _spoiler(self) -> None:
        if self.is_a["spoiler"] != "present":
            return
        shape = self.shape
        on_roof = self.type != "sedan"
        y, z = shape.profile[6] if on_roof else shape.profile[8]
        y, z = (y, z) if on_roof else (y + 0.08, z + 0.16)
        half = 0.9 * shape.half(y, z)
        back = y - 0.28
        if not on_roof:
            for u in (0.7, -0.7):
                x = u * half
                self.lay(
                    [(x - 0.04, y, z - 0.2), (x + 0.04, y, z - 0.2), (x + 0.04, y, z), (x - 0.04, y, z)], "spoiler", 2
                )
        self.lay([(half, y, z), (-half, y, z), (-half, back, z + 0.03), (half, back, z + 0.03)], "spoiler", 3)
        self.lay(
            [(half, back, z + 0.03), (-half, back, z + 0.03), (-half, back, z - 0.06), (half, back, z - 0.06)],
            "spoiler",
            1,
        )
        for side in self.sides:
            self.lay([(side * half, y, z), (side * half, back, z + 0.03), (side * half, back, z - 0.06)], "spoiler", 0)


def _beside(x: float, y: float, z: float) -> Point:
    return x, y, z
