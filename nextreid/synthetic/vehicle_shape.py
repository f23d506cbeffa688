"""The solid of each type of vehicle: a side profile drawn out over the width, narrower towards roof and ends."""

from collections.abc import Mapping
from dataclasses import dataclass

from .figure import Pair, Point
from .vehicle import VehicleBody

STRIPS = ("bumper", "face", "hood", "windscreen", "roof", "roof", "rear window", "deck", "tail", "rear bumper")
"""What lies between neighbouring points of the profile, from the lower front edge over the roof to the rear."""
BUMPER, FACE, HOOD, WINDSCREEN, _, _, REAR_WINDOW, DECK, TAIL, REAR_BUMPER = range(10)


@dataclass(frozen=True, slots=True)
class _Form:
    """The proportions of a type in metres; places on the length are distances from the nearer end."""

    length: float
    width: float
    height: float
    clearance: float
    wheel: float
    axles: Pair  # of the first wheels from the front, of the last from the rear
    nose: float  # height of the hood's front edge
    cowl: Pair  # foot of the windscreen: place and height
    roof: Pair  # front and rear end of the roof
    deck: Pair  # foot of the rear window
    tail: float  # height of the rear edge
    tuck: float  # how far the roof is narrower
    taper: float  # how far the ends are narrower
    pillars: int  # between the side windows


_FORMS: Mapping[str, _Form] = {
    "sedan": _Form(
        4.7, 1.82, 1.46, 0.2, 0.33, (0.9, 1.05), 0.8, (1.3, 1.0), (2.05, 1.4), (0.66, 1.02), 0.96, 0.22, 0.12, 1
    ),
    "hatchback": _Form(
        4.05, 1.78, 1.5, 0.2, 0.33, (0.82, 0.66), 0.82, (1.08, 1.02), (1.78, 0.62), (0.12, 1.06), 0.92, 0.2, 0.12, 1
    ),
    "SUV": _Form(
        4.65, 1.92, 1.76, 0.27, 0.38, (0.92, 0.9), 1.02, (1.25, 1.17), (1.85, 0.42), (0.1, 1.22), 1.08, 0.16, 0.1, 2
    ),
    "van": _Form(
        5.1, 1.95, 2.15, 0.24, 0.35, (0.88, 0.98), 1.02, (0.8, 1.25), (1.5, 0.16), (0.05, 1.3), 1.1, 0.12, 0.07, 2
    ),
    "pickup truck": _Form(
        5.3, 1.92, 1.84, 0.32, 0.4, (0.98, 1.18), 1.08, (1.4, 1.24), (2.05, 2.25), (2.08, 1.22), 1.18, 0.17, 0.09, 1
    ),
    "bus": _Form(
        8.6, 2.5, 3.05, 0.34, 0.48, (2.1, 2.0), 1.05, (0.06, 1.3), (0.4, 0.14), (0.04, 1.4), 1.1, 0.03, 0.03, 5
    ),
    "truck": _Form(
        6.6, 2.2, 2.45, 0.42, 0.46, (0.95, 1.25), 1.05, (0.06, 1.42), (0.36, 4.85), (4.75, 1.3), 1.0, 0.05, 0.04, 0
    ),
}
_BOX = (1.0, 3.05)  # lower and upper edge of a truck's box


class Shape:
    """Where the surface of one vehicle lies; y is forward from the middle, z is up from the ground."""

    def __init__(self, kind: str, body: VehicleBody, sloped: bool) -> None:
        form = _FORMS[kind]
        self.form = form
        self.length, self.width = form.length * body.length, form.width * body.width
        self.height = form.height * body.height
        self.clearance, self.wheel = form.clearance, form.wheel * body.wheel
        front, rear = self.length / 2, -self.length / 2
        lift = (body.belt - 1) * self.height
        cowl, roof, deck = form.cowl[0] * body.hood, form.roof[0] * body.hood, form.deck[0]
        slant = (body.rake - 1) * (roof - cowl)
        back = form.roof[1] + (body.rake - 1) * (form.roof[1] - deck)
        top, low = self.height - 0.02, self.clearance
        middle, tail = low + 0.36 * (form.nose - low), low + 0.36 * (form.tail - low)
        slope = 0.05 * self.height if sloped else 0.0
        peak = front - roof - slant - 0.25 * (self.length - roof - back)
        self.profile: list[Pair] = [
            (front - 0.05, low),
            (front, middle),
            (front - min(0.10, 0.5 * cowl), form.nose + 0.5 * lift),
            (front - cowl, form.cowl[1] + lift),
            (front - roof - slant, top),
            (peak, self.height),
            (rear + back, top - slope),
            (rear + deck, form.deck[1] + lift),
            (rear + 0.03, form.tail + 0.7 * lift),
            (rear, tail),
            (rear + 0.05, low),
        ]
        self.belt = form.cowl[1] + lift
        self.halves = [self.half(y, z) for y, z in self.profile]
        wheelbase = self.length - sum(form.axles)
        shift = 0.5 * (body.wheelbase - 1) * wheelbase
        self.axles = (front - form.axles[0] + shift, rear + form.axles[1] - shift)
        self.box = (rear + 0.02, front - 1.85) if kind == "truck" else None

    def half(self, y: float, z: float) -> float:
        """Half width at a place of the profile."""
        rise = max(0.0, (z - self.belt) / max(0.1, self.height - self.belt))
        end = max(0.0, 1 - (self.length / 2 - abs(y)) / (0.14 * self.length))
        foot = 0.03 if z < self.clearance + 0.1 else 0.0
        return self.width / 2 * (1 - self.form.tuck * rise) * (1 - self.form.taper * end**2) * (1 - foot)

    def on_strip(self, strip: int, u: float, v: float) -> Point:
        """Return the point at `u`, from -1 (right) to 1 (left), and `v`, from 0 to 1 along the profile."""
        (y0, z0), (y1, z1) = self.profile[strip], self.profile[strip + 1]
        wide = (1 - v) * self.halves[strip] + v * self.halves[strip + 1]
        return u * wide, y0 + v * (y1 - y0), z0 + v * (z1 - z0)

    def on_side(self, side: int, y: float, z: float) -> Point:
        """Return the point of the left (1) or right (-1) side at a place of the profile."""
        return side * self.half(y, z), y, z

    def box_corners(self, side: int) -> list[Point]:
        """Return the outline of one side of a truck's box."""
        assert self.box is not None
        low, high = _BOX
        half, (rear, front) = self.width / 2 * 1.03, self.box
        return [(side * half, y, z) for y, z in ((rear, low), (front, low), (front, high), (rear, high))]
