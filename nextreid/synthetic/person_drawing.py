"""A person as a map of part labels: a jointed body, dressed, turned and painted from far to near."""

import math
from itertools import pairwise

import numpy as np

from .figure import PERSON, SUPERSAMPLING, Figure, Point, between
from .identity import Identity
from .person import Body
from .scene import Camera, Frame

_BARE_SLEEVES = ("t-shirt", "dress")
_HEM = {"coat": 0.60, "dress": 0.56, "jacket": 0.93, "hoodie": 0.94, "sweater": 0.95, "t-shirt": 0.95}
_BEND = {"umbrella": 1.9, "phone": 2.0, "book": 1.5, "bottle": 1.0}  # of the elbow, in radians
_BEHIND = -0.06  # depth from which a hand hides behind the body
_BULK = {"coat": 0.014, "jacket": 0.011, "hoodie": 0.009, "sweater": 0.006, "t-shirt": 0.003, "dress": 0.002}


def draw_person(identity: Identity[Body], frame: Frame, camera: Camera, img_size: tuple[int, int]) -> np.ndarray:
    """Draw the ``(2H, 2W)`` uint8 labels of one person, unoccluded."""
    height, width = img_size[0] * SUPERSAMPLING, img_size[1] * SUPERSAMPLING
    figure = _Person(identity, frame, identity.body.stature * camera.scale * frame.zoom * height)
    return figure.paint(width, height, center=width * (0.5 + frame.dx), ground=height * (0.965 + frame.dy))


class _Person(Figure):
    """A jointed body with its clothes and what it carries."""

    def __init__(self, identity: Identity[Body], frame: Frame, stature: float) -> None:
        super().__init__(PERSON, frame.yaw, stature)
        self.body = identity.body
        self.wears = identity.attributes
        self.frame = frame
        self.female = self.wears["gender"] == "female"
        self.bulk = _BULK[self.wears["upper_clothing"]] * self.body.fit
        self.shoulder_height = 1 - self.body.head - 0.045
        self._legs()
        self._torso()
        self._head()
        hand = self._arms()
        for name, draw in {"backpack": self._backpack, "handbag": self._handbag, "suitcase": self._suitcase}.items():
            if self.wears[name] == "yes":
                draw(hand)
        if frame.state != "none":
            self._held(hand)

    def _legs(self) -> None:
        body, wears = self.body, self.wears
        garment = wears["lower_clothing"]
        dress = wears["upper_clothing"] == "dress"
        thick = body.limb
        loose = {"trousers": 0.010, "jeans": 0.004, "shorts": 0.014}.get(garment, 0.0) * body.fit
        covered = garment in ("trousers", "jeans")
        swing = body.stride * (0.45 + 0.55 * abs(self.sin))
        for leg in (-1, 1):
            angle = swing * math.sin(self.frame.phase) * leg
            bend = 0.75 * swing * max(0.0, math.cos(self.frame.phase) * leg) + 0.06
            hip = (leg * body.hip * 0.52, 0.0, body.leg + 0.015)
            thigh, shin = body.leg * 0.50, body.leg * 0.44
            knee = (hip[0] * 0.96, thigh * math.sin(angle), hip[2] - thigh * math.cos(angle))
            low = angle - bend
            ankle = (hip[0] * 0.98, knee[1] + shin * math.sin(low), knee[2] - shin * math.cos(low))
            # both legs stay behind the torso and its skirts
            depth, shade = (-0.05, 0) if self.flat(ankle[0], ankle[1])[1] >= 0 else (-0.07, 1)
            region = "lower" if covered else "skin"
            self.limb(hip, knee, 0.054 * thick + loose * 0.4, 0.034 * thick + loose * 0.8, depth, region, shade)
            self.limb(knee, ankle, 0.033 * thick + loose * 0.8, 0.019 * thick + loose * 0.8, depth, region, shade)
            if garment == "shorts" and not dress:
                end = between(hip, knee, 0.72)
                self.limb(hip, end, 0.058 * thick + loose * 0.5, 0.050 * thick + loose, depth, "lower", shade)
            if covered and body.lower_trim == "side stripe":
                out = leg * 0.030 * thick
                line = ((hip[0] + out * 1.5, *hip[1:]), (knee[0] + out, *knee[1:]), (ankle[0] + out * 0.7, *ankle[1:]))
                for start, end in pairwise(line):
                    self.limb(start, end, 0.008, 0.008, depth, "lower_trim", shade)
            elif covered and body.lower_trim == "cuffs":
                top = between(ankle, knee, 0.2)
                r = 0.024 * thick + loose
                self.limb(top, ankle, r, r, depth, "lower_trim", shade)
            self._shoe(ankle, depth, shade)
        if garment == "skirt" and not dress:
            self._skirt("lower", body.leg + 0.10, body.leg * 0.56, 1.25)

    def _shoe(self, ankle: Point, depth: float, shade: int) -> None:
        kind = self.wears["footwear"]
        x, y, up = ankle
        floor = up - 0.030
        heel, toe = (x, y - 0.018, floor), (x, y + 0.062, floor - 0.004)
        if kind == "boots":
            self.limb((x, y, up + 0.075), (x, y, floor), 0.028 * self.body.limb, 0.026, depth, "shoe", shade)
        if kind == "sandals":
            self.limb(heel, toe, 0.014, 0.013, depth, "skin", shade)
        r = {"sandals": 0.008, "heels": 0.012}.get(kind, 0.021)
        low = 0.008 if kind != "heels" else 0.0
        self.limb((*heel[:2], floor + low), (*toe[:2], floor + low), r, r * 0.85, depth, "shoe", shade)
        if kind == "sneakers":
            self.limb((*heel[:2], floor - 0.010), (*toe[:2], floor - 0.014), 0.009, 0.008, depth, "sole", shade)

    def _skirt(self, region: str, top: float, hem: float, flare: float) -> None:
        wide, deep = self.body.hip + 0.006, self.body.depth + 0.012
        upper, lower = self.girth(wide, deep) * 0.86, self.girth(wide * flare, deep * flare * 1.3)
        middle = self.girth(wide, deep) * 1.04
        half = 0.5 * (top + self.body.leg)
        self.polygon(
            [(-upper, top), (upper, top), (middle, half), (lower, hem), (-lower, hem), (-middle, half)], 0.045, region
        )

    def _level(self, up: float) -> tuple[float, float]:
        """Centre and half width of the dressed torso, as seen, at a height."""
        body, top = self.body, self.shoulder_height
        hips = body.leg + 0.03
        rows = (
            (hips - 0.08, body.hip * 1.02, body.depth * 1.05, 0.0),
            (hips, body.hip, body.depth * 1.08, 0.0),
            (hips + 0.10, body.waist, body.depth * 0.98, 0.2),
            (top - 0.13, body.chest, body.depth * (1.15 if self.female else 1.05), 0.7),
            (top - 0.045, body.shoulder * 0.96, body.depth * 0.85, 1.0),
            (top - 0.010, body.shoulder * 0.72, body.depth * 0.66, 1.0),
            (top + 0.015, 0.042, 0.042, 1.0),
        )
        for (y0, w0, d0, s0), (y1, w1, d1, s1) in pairwise(rows):
            if up <= y1 or y1 == rows[-1][0]:
                t = min(1.0, max(0.0, (up - y0) / (y1 - y0)))
                wide, deep, stoop = w0 + t * (w1 - w0), d0 + t * (d1 - d0), s0 + t * (s1 - s0)
                return self.flat(0, body.stoop * stoop)[0], self.girth(wide, deep) + self.bulk
        raise AssertionError("rows cover every height")

    def _band(self, low: float, high: float, region: str, depth: float, left: float = -1, right: float = 1) -> None:
        """Add the slice of the torso between two heights and two fractions of its half width."""
        steps = [low + (high - low) * k / 5 for k in range(6)]
        levels = [(y, *self._level(y)) for y in steps]
        points = [(c + left * h, y) for y, c, h in levels] + [(c + right * h, y) for y, c, h in reversed(levels)]
        self.polygon(points, depth, region)

    def _torso(self) -> None:
        body, garment = self.body, self.wears["upper_clothing"]
        top = self.shoulder_height + 0.012
        hem = body.leg * _HEM[garment]
        depth = 0.05
        if garment in ("coat", "dress"):
            self._skirt("upper", body.leg + 0.12, hem, 1.32 if garment == "dress" else 1.08)
        self._band(max(hem, body.leg - 0.05), top, "upper", depth)
        length = top - body.leg
        trims = {
            "stripes": [(body.leg + k * length, body.leg + (k + 0.10) * length) for k in (0.18, 0.44, 0.70)],
            "yoke": [(top - 0.32 * length, top)],
            "hem": [(body.leg - 0.03, body.leg + 0.14 * length)],
        }
        for low, high in trims.get(body.upper_trim, ()):
            self._band(low, high, "upper_trim", depth + 0.001)
        # a logo is on the chest of one half of the people, on the back of the other
        facing = self.cos if body.side > 0 else -self.cos
        if body.upper_trim == "logo" and facing > 0.3:
            shift, half = 0.4 * self.sin * (1 if body.side > 0 else -1), 0.5 * facing
            self._band(top - 0.52 * length, top - 0.24 * length, "upper_trim", 0.051, shift - half, shift + half)
        if body.open and self.cos > 0.25:
            shift = 0.5 * self.sin
            self._band(body.leg - 0.02, top, "inner", depth + 0.003, shift - 0.30 * self.cos, shift + 0.30 * self.cos)

    def _head(self) -> None:
        body = self.body
        size, lean = body.head, self.flat(0, body.stoop * 1.5 + 0.012)[0]
        middle = 1 - size * 0.53
        rx, ry = self.girth(size * 0.36, size * 0.42), size * 0.52
        depth = 0.07
        neck = self.flat(0, body.stoop)[0]
        self.block((neck, self.shoulder_height - 0.005), (lean, middle), 0.030, 0.026, depth - 0.002, "skin", 1)
        length, curly = self.wears["hair_length"], self.wears["hair_style"] == "curly"
        puff = {"curly": 1.16, "wavy": 1.07}.get(self.wears["hair_style"], 1.03)
        if length == "short" and not curly:
            # the skull shows below the hairline of the neck
            self.ellipse(lean, middle, rx, ry, depth, "skin", 0)
            back = -self.sin * rx * 0.12
            self.ellipse(lean + back, middle + ry * 0.20, rx * puff, ry * 0.84, depth + 0.001, "hair")
        else:
            self.ellipse(lean, middle + ry * 0.04, rx * puff, ry * puff, depth, "hair")
        if length in ("medium", "long"):
            end = self.shoulder_height - (0.02 if length == "medium" else 0.13)
            behind = lean - self.sin * rx * 0.55
            half = self.girth(size * 0.36, size * 0.26) * puff
            near = 0.04 - 0.12 * self.cos if self.cos > 0 else depth + 0.002
            self.block((behind, middle), (behind, end), half, half * 0.9, near, "hair")
        self._face(lean, middle, rx, ry, depth + 0.003)

    def _face(self, x: float, y: float, rx: float, ry: float, depth: float) -> None:
        front = self.cos
        if front < -0.45:
            return
        wide = rx * (0.52 + 0.34 * front)
        shift = self.sin * rx * (0.50 if front < 0.7 else 0.3)
        self.ellipse(x + shift, y - ry * 0.18, wide, ry * 0.80, depth, "skin")
        eyes = y + ry * 0.02
        look = x + shift + self.sin * wide * 0.5
        gap = wide * 0.50 * max(0.0, front)
        for side in (-1, 1) if front > 0.2 else (0,):
            self.ellipse(look + side * gap, eyes, wide * 0.20, ry * 0.06, depth + 0.001, "features")
        self.ellipse(look, y - ry * 0.55, wide * (0.16 + 0.16 * max(0.0, front)), ry * 0.045, depth + 0.001, "features")
        if self.wears["glasses"] == "yes":
            reach = wide * (0.25 + 0.62 * max(0.0, front))
            self.block((look, eyes + ry * 0.12), (look, eyes - ry * 0.13), reach, reach, depth + 0.002, "glasses")

    def _arms(self) -> Point:
        """Add both arms and return the hand that holds things."""
        body, garment = self.body, self.wears["upper_clothing"]
        bare = garment in _BARE_SLEEVES
        shoulder_up = self.shoulder_height - 0.045
        upper, fore = body.arm * 0.52, body.arm * 0.46
        sleeve = (0.024 if not bare else 0.021) * body.limb + (0 if bare else self.bulk * 0.8)
        busy = self.frame.state != "none"
        trim = "upper_trim" if body.upper_trim == "sleeves" else "upper"
        hand: Point = (0.0, 0.0, 0.0)
        for arm in (-1, 1):
            holding = busy and arm == body.side
            swing = -0.8 * body.stride * math.sin(self.frame.phase) * arm
            bend = _BEND[self.frame.state] if holding else 0.25 + 0.5 * max(0.0, swing)
            swing = 0.25 if holding else swing
            joint = (arm * (body.shoulder - 0.016), body.stoop, shoulder_up)
            out = arm * 0.020
            elbow = (joint[0] + out, joint[1] + upper * math.sin(swing), joint[2] - upper * math.cos(swing))
            low = swing + bend
            wrist = (elbow[0] + out * 0.2, elbow[1] + fore * math.sin(low), elbow[2] - fore * math.cos(low))
            depth, shade = (-0.10, 2) if self.flat(joint[0], 0)[1] < -0.03 else (0.11, 1)
            self.limb(joint, elbow, sleeve * 1.05, sleeve, depth, "skin" if bare else trim, shade)
            fore_depth = depth if self.flat(*wrist[:2])[1] > _BEHIND else -0.10
            self.limb(elbow, wrist, sleeve * 0.98, sleeve * 0.74, fore_depth, "skin" if bare else trim, shade)
            if bare:
                end = between(joint, elbow, 0.62)
                wide = 0.029 * body.limb + self.bulk
                self.limb(joint, end, wide, wide, depth, trim, shade)
            self.ellipse(self.flat(*wrist[:2])[0], wrist[2] - 0.008, 0.018, 0.024, fore_depth, "skin", shade - 1)
            if arm == body.side:
                hand = (wrist[0], wrist[1], wrist[2] - 0.008)
        return hand

    def _backpack(self, hand: Point) -> None:
        body, top = self.body, self.shoulder_height
        wide, deep, tall = 0.095 * body.bag, 0.055 * body.bag, 0.25 * body.bag
        x, depth = self.flat(0, -(body.depth + deep * 0.8))
        half, high = self.girth(wide, deep), top - 0.005
        low = high - tall
        depth = depth * 0.6 if self.cos > 0 else 0.13
        outline = [(-0.75, high), (0.75, high), (1, high - 0.05), (1, low + 0.03), (0.8, low), (-0.8, low)]
        outline += [(-1, low + 0.03), (-1, high - 0.05)]
        self.polygon([(x + half * u, y) for u, y in outline], depth, "backpack")
        self.block((x, low + tall * 0.45), (x, low + 0.02), half * 0.6, half * 0.6, depth + 0.001, "backpack", 1)
        if self.cos > -0.3:
            for side in (-1, 1):
                strap = self.flat(side * body.shoulder * 0.55, body.depth)[0]
                self.block((strap, top), (strap, top - 0.17), 0.014, 0.012, 0.056, "backpack", 1)

    def _handbag(self, hand: Point) -> None:
        body = self.body
        x, depth = self.flat(body.side * (body.hip + 0.045), 0.01)
        half, tall, high = self.girth(0.038 * body.bag, 0.075 * body.bag), 0.115 * body.bag, body.leg + 0.05
        depth += 0.10 if depth > -0.03 else -0.03
        self.block((x, high), (x, high - tall), half, half * 1.1, depth, "handbag")
        shoulder = self.flat(-body.side * body.shoulder * 0.4, 0.0)[0]
        self.block((shoulder, self.shoulder_height), (x, high), 0.008, 0.008, 0.058, "handbag", 1)

    def _suitcase(self, hand: Point) -> None:
        x, depth = self.flat(self.body.side * 0.16, -0.16)
        half, tall = self.girth(0.085, 0.055), 0.25
        self.block((x, tall), (x, 0.012), half, half, depth, "suitcase")
        self.block((x, 0.15), (x, 0.13), half, half, depth + 0.001, "suitcase", 2)
        grip = (self.flat(*hand[:2])[0], hand[2])
        self.block(grip, (x, tall), 0.006, 0.008, depth + 0.001, "suitcase", 1)

    def _held(self, hand: Point) -> None:
        x, depth = self.flat(*hand[:2])
        up, near = hand[2], 0.14 if depth > _BEHIND else -0.11
        if self.frame.state == "umbrella":
            roof = 1.10
            arc = [(x + 0.30 * math.cos(k * math.pi / 8), roof + 0.13 * math.sin(k * math.pi / 8)) for k in range(9)]
            self.block((x, roof), (x, up), 0.006, 0.006, near, "held")
            self.polygon(arc, 0.3, "umbrella")
            return
        half, tall = {"phone": (0.018, 0.035), "bottle": (0.016, 0.055), "book": (0.050, 0.036)}[self.frame.state]
        self.block((x, up + tall), (x, up - tall), half, half, near, "held")
