"""Everything around the person: cameras, visits and frames, each from a random stream independent of the body."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..data.rng import seeded_rng
from .config import PersonsConfig
from .identity import FIRST_PID, MARGINALS, choose

VIEWS = ("front", "back", "side")
_NUM_BYSTANDERS = 1000
_ASIDE = 0.2  # displacement of two people side by side, as a fraction of the image's width
_VIEW_PROBABILITIES = np.array([0.16, 0.44, 0.40])  # as in the published RGB captions


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera station with three aligned sensors."""

    gain: np.ndarray  # (3,) white balance
    gamma: float  # display gamma
    noise: float  # factor on sensor noise
    blur: float  # optical blur in pixels at height 128
    scale: float  # factor on the person's size in the crop
    nir_gain: float
    tir_gain: float
    tir_offset: float
    views: np.ndarray  # (3,) probabilities of VIEWS


@dataclass(frozen=True, slots=True)
class Visit:
    """One identity at one camera: what its frames have in common."""

    night: bool
    light: float  # illuminance, 1 on a bright day, 0.03 in the dark
    cast: np.ndarray  # (3,) colour of the light
    ambient: float  # temperature of the surroundings on the thermal scale
    yaw: float  # main heading in radians; 0 faces the camera, positive turns the face to the image's right
    held: str  # what the person holds
    zoom: float  # factor on the person's size


@dataclass(frozen=True, slots=True)
class Occluder:
    """Something in front of the person, in fractions of the image."""

    kind: str  # "wall" from below, "post" from top to bottom, "bush" a blob
    x: float  # centre of a post or bush
    y: float  # centre of a bush, upper edge of a wall
    size: float  # half width of a post, radius of a bush


@dataclass(frozen=True, slots=True)
class Bystander:
    """Somebody who stands beside the person for a moment."""

    pid: int
    yaw: float
    phase: float
    dx: float
    zoom: float


@dataclass(frozen=True, slots=True)
class Frame:
    """One moment of a visit."""

    yaw: float  # heading in radians
    phase: float  # of the gait, in radians
    held: str  # what is held now, or "none"
    zoom: float  # factor on the person's size
    dx: float  # displacement of the crop as a fraction of its width
    dy: float  # and of its height
    light: float  # illuminance
    shade: float  # direction of the light, -1 from the left to 1 from the right
    defocus: float  # blur in pixels at height 128
    motion: float  # additional horizontal blur in pixels at height 128
    occluder: Occluder | None
    flare: tuple[float, float, float, float] | None  # centre, radius and strength of a lamp's flare
    bystander: Bystander | None = None

    @property
    def view(self) -> str:
        """The heading as one of `VIEWS`."""
        facing = np.cos(self.yaw)
        return "front" if facing > 0.64 else "back" if facing < -0.64 else "side"

    @property
    def illumination(self) -> str:
        """The light in the captions' words."""
        return "dim" if self.light < 0.35 else "normal" if self.light < 0.85 else "bright"


@lru_cache(maxsize=64)
def make_camera(seed: int, camid: int) -> Camera:
    """Build camera `camid`, counted from 0."""
    rng = seeded_rng("persons", seed, "camera", camid)
    return Camera(
        gain=1 + rng.uniform(-0.14, 0.14, 3),
        gamma=float(rng.uniform(2.0, 2.5)),
        noise=float(rng.uniform(0.7, 1.4)),
        blur=float(rng.uniform(0.35, 0.75)),
        scale=float(rng.uniform(0.93, 1.01)),
        nir_gain=float(rng.uniform(0.85, 1.15)),
        tir_gain=float(rng.uniform(0.90, 1.08)),
        tir_offset=float(rng.uniform(-0.04, 0.04)),
        views=rng.dirichlet(7 * _VIEW_PROBABILITIES),
    )


def visited_cameras(config: PersonsConfig, pid: int) -> tuple[int, ...]:
    """Return the two or three cameras, sorted, that an identity passes."""
    rng = seeded_rng("persons", config.seed, "route", pid)
    count = min(config.cameras, 2 + int(rng.integers(2)))
    return tuple(sorted(int(camid) for camid in rng.choice(config.cameras, count, replace=False)))


def make_visit(config: PersonsConfig, pid: int, camid: int) -> Visit:
    """Draw what the frames of identity `pid` at camera `camid` have in common."""
    rng = seeded_rng("persons", config.seed, "visit", pid, camid)
    night = bool(rng.random() < config.night)
    lamp = rng.random()
    cast = np.array([1.12, 1.0, 0.72]) if lamp < 0.5 else np.array([0.92, 1.0, 1.06])
    low, high = np.log(0.025), np.log(0.16)
    return Visit(
        night=night,
        light=float(np.exp(rng.uniform(low, high)) if night else rng.uniform(0.45, 1.15)),
        cast=cast if night else np.array([1.0, 1.0, 1.0]) + 0.04 * (lamp - 0.5) * np.array([1.0, 0.0, -1.0]),
        ambient=float(rng.uniform(0.08, 0.22) if night else rng.uniform(0.16, 0.36)),
        yaw=_draw_yaw(rng, _views(config, camid)),
        held=choose(rng, MARGINALS["holding"]),
        zoom=float(rng.uniform(0.95, 1.03)),
    )


def make_frame(config: PersonsConfig, visit: Visit, pid: int, camid: int, number: int) -> Frame:
    """Draw frame `number` of a visit: pose and crop from one stream, disturbances from another."""
    rng = seeded_rng("persons", config.seed, "frame", pid, camid, number)
    other = _draw_yaw(rng, _views(config, camid))
    kept = visit.yaw + float(rng.normal(0, 0.14))
    yaw = kept if rng.random() < config.view_persistence else other
    held = visit.held if rng.random() < 0.85 else "none"
    clutter = seeded_rng("persons", config.seed, "clutter", pid, camid, number)
    occluded, flared, kind = clutter.random(3)
    x, y, size, where, strength = clutter.random(5)
    company = seeded_rng("persons", config.seed, "bystander", pid, camid, number)
    aside = _ASIDE * float(company.choice((-1, 1))) if company.random() < config.bystander else 0.0
    return Frame(
        yaw=yaw,
        phase=float(rng.uniform(0, 2 * np.pi)),
        held=held,
        zoom=visit.zoom * float(rng.uniform(0.97, 1.03)),
        dx=float(rng.normal(0, 0.025)) + aside,
        dy=float(rng.normal(0, 0.010)),
        light=visit.light * float(rng.uniform(0.88, 1.14)),
        shade=float(rng.uniform(-1, 1)),
        defocus=config.blur * abs(float(rng.normal(0, 0.5))),
        motion=config.blur * float(rng.exponential(0.35)),
        occluder=_occluder(kind, x, y, size) if occluded < config.occlusion else None,
        flare=(0.1 + 0.8 * x, 0.8 * where, 0.10 + 0.12 * size, 0.5 + strength) if flared < config.flare else None,
        bystander=_bystander(config, camid, -aside, company) if aside else None,
    )


def _bystander(config: PersonsConfig, camid: int, aside: float, rng: np.random.Generator) -> Bystander:
    return Bystander(
        pid=FIRST_PID["bystander"] + int(rng.integers(_NUM_BYSTANDERS)),
        yaw=_draw_yaw(rng, _views(config, camid)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        dx=aside + float(rng.normal(0, 0.025)),
        zoom=float(rng.uniform(0.93, 1.05)),
    )


def _views(config: PersonsConfig, camid: int) -> np.ndarray:
    """Probabilities of `VIEWS` at a camera; the gap moves them to one side that neighbouring cameras do not share."""
    views = make_camera(config.seed, camid).views
    if not config.view_gap:
        return views
    only = np.eye(len(VIEWS))[VIEWS.index("front" if camid % 2 else "back")]
    return (1 - config.view_gap) * views + config.view_gap * only


def _occluder(kind: float, x: float, y: float, size: float) -> Occluder:
    if kind < 0.4:
        return Occluder("wall", 0.5, 0.60 + 0.26 * y, 0.0)
    if kind < 0.7:
        return Occluder("post", 0.12 + 0.76 * x, 0.5, 0.04 + 0.05 * size)
    return Occluder("bush", 0.1 + 0.8 * x, 0.72 + 0.2 * y, 0.18 + 0.16 * size)


def _draw_yaw(rng: np.random.Generator, views: np.ndarray) -> float:
    view, within, side = rng.random(3)
    if view < views[0]:
        middle = 0.0
    elif view < views[0] + views[1]:
        middle = np.pi
    else:
        middle = np.pi / 2 if side < 0.5 else -np.pi / 2
    return float(middle + 1.1 * (within - 0.5))
