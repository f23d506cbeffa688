"""Everything around a person or vehicle: cameras, visits and frames, from random streams independent of the body."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..data.rng import seeded_rng
from .config import PersonsConfig, SyntheticConfig
from .identity import FIRST_PID, Choices, choose

_NUM_BYSTANDERS = 1000
_ASIDE = 0.2  # displacement of two people side by side, as a fraction of the image's width


@dataclass(frozen=True, slots=True)
class Manner:
    """How persons, or vehicles, are met: probabilities and names as in the published RGB captions."""

    views: Mapping[str, float]  # probability of each view
    headings: Mapping[str, tuple[float, ...]]  # its middle yaws in radians
    spread: float  # width of a view in radians
    facing: float  # cosine of the yaw from which a view is "front", and below its negative "back"
    sidelong: float  # cosine below which it is "side"; what lies between is "diagonal"
    states: Choices  # what a person holds, how a vehicle's headlights are
    idle: str  # the state in between


_QUARTER = np.pi / 4
MANNERS: Mapping[str, Manner] = {
    "persons": Manner(
        views={"front": 0.16, "back": 0.44, "side": 0.40},
        headings={"front": (0.0,), "back": (np.pi,), "side": (np.pi / 2, -np.pi / 2)},
        spread=1.1,
        facing=0.64,
        sidelong=0.64,
        states={"none": 0.80, "phone": 0.12, "bottle": 0.03, "umbrella": 0.03, "book": 0.02},
        idle="none",
    ),
    "vehicles": Manner(
        views={"front": 0.24, "back": 0.30, "side": 0.30, "diagonal": 0.16},
        headings={
            "front": (0.0,),
            "back": (np.pi,),
            "side": (np.pi / 2, -np.pi / 2),
            "diagonal": (_QUARTER, 3 * _QUARTER, -3 * _QUARTER, -_QUARTER),
        },
        spread=0.8,
        facing=0.92,
        sidelong=0.40,
        states={"off": 0.82, "on": 0.15, "dimmed": 0.03},
        idle="off",
    ),
}


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera station with three aligned sensors."""

    gain: np.ndarray  # (3,) white balance
    gamma: float  # display gamma
    noise: float  # factor on sensor noise
    blur: float  # optical blur in pixels at height 128
    scale: float  # factor on the object's size in the crop
    nir_gain: float
    tir_gain: float
    tir_offset: float
    views: np.ndarray  # (V,) probabilities of the manner's views
    pitch: float  # how far it looks down on vehicles, in radians


@dataclass(frozen=True, slots=True)
class Visit:
    """One identity at one camera: what its frames have in common."""

    night: bool
    light: float  # illuminance, 1 on a bright day, 0.03 in the dark
    cast: np.ndarray  # (3,) colour of the light
    ambient: float  # temperature of the surroundings on the thermal scale
    yaw: float  # main heading in radians; 0 faces the camera, positive turns the face to the image's right
    state: str  # what the person holds, how the headlights are
    zoom: float  # factor on the object's size
    engine: float  # how warm a vehicle has become from driving, 0 to 1


@dataclass(frozen=True, slots=True)
class Occluder:
    """Something in front of the person or vehicle, in fractions of the image."""

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
    phase: float  # of the gait or of the wheels, in radians
    state: str  # what is held now, or "none"; how the headlights are now
    zoom: float  # factor on the object's size
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
    def illumination(self) -> str:
        """The light in the captions' words."""
        return "dim" if self.light < 0.35 else "normal" if self.light < 0.85 else "bright"


@lru_cache(maxsize=64)
def make_camera(kind: str, seed: int, camid: int) -> Camera:
    """Build camera `camid`, counted from 0, of a dataset of persons or vehicles."""
    rng = seeded_rng(kind, seed, "camera", camid)
    return Camera(
        gain=1 + rng.uniform(-0.14, 0.14, 3),
        gamma=float(rng.uniform(2.0, 2.5)),
        noise=float(rng.uniform(0.7, 1.4)),
        blur=float(rng.uniform(0.35, 0.75)),
        scale=float(rng.uniform(0.93, 1.01)),
        nir_gain=float(rng.uniform(0.85, 1.15)),
        tir_gain=float(rng.uniform(0.90, 1.08)),
        tir_offset=float(rng.uniform(-0.04, 0.04)),
        views=rng.dirichlet(7 * np.array(list(MANNERS[kind].views.values()))),
        pitch=float(rng.uniform(0.06, 0.22)),
    )


def visited_cameras(config: SyntheticConfig, pid: int) -> tuple[int, ...]:
    """Return the two or three cameras, sorted, that an identity passes."""
    rng = seeded_rng(config.kind, config.seed, "route", pid)
    count = min(config.cameras, 2 + int(rng.integers(2)))
    return tuple(sorted(int(camid) for camid in rng.choice(config.cameras, count, replace=False)))


def make_visit(config: SyntheticConfig, pid: int, camid: int) -> Visit:
    """Draw what the frames of identity `pid` at camera `camid` have in common."""
    rng = seeded_rng(config.kind, config.seed, "visit", pid, camid)
    night = bool(rng.random() < config.night)
    lamp = rng.random()
    cast = np.array([1.12, 1.0, 0.72]) if lamp < 0.5 else np.array([0.92, 1.0, 1.06])
    low, high = np.log(0.025), np.log(0.16)
    return Visit(
        night=night,
        light=float(np.exp(rng.uniform(low, high)) if night else rng.uniform(0.45, 1.15)),
        cast=cast if night else np.array([1.0, 1.0, 1.0]) + 0.04 * (lamp - 0.5) * np.array([1.0, 0.0, -1.0]),
        ambient=float(rng.uniform(0.08, 0.22) if night else rng.uniform(0.16, 0.36)),
        yaw=_draw_yaw(config, camid, rng),
        state=choose(rng, MANNERS[config.kind].states),
        zoom=float(rng.uniform(0.95, 1.03)),
        engine=float(rng.uniform(0.25, 1.0)),
    )


def make_frame(config: SyntheticConfig, visit: Visit, pid: int, camid: int, number: int) -> Frame:
    """Draw frame `number` of a visit: pose and crop from one stream, disturbances from another."""
    rng = seeded_rng(config.kind, config.seed, "frame", pid, camid, number)
    other = _draw_yaw(config, camid, rng)
    kept = visit.yaw + float(rng.normal(0, 0.14))
    yaw = kept if rng.random() < config.view_persistence else other
    state = visit.state if rng.random() < 0.85 else MANNERS[config.kind].idle
    clutter = seeded_rng(config.kind, config.seed, "clutter", pid, camid, number)
    occluded, flared, kind = clutter.random(3)
    x, y, size, where, strength = clutter.random(5)
    company = seeded_rng(config.kind, config.seed, "bystander", pid, camid, number)
    accompanied = isinstance(config, PersonsConfig) and company.random() < config.bystander
    aside = _ASIDE * float(company.choice((-1, 1))) if accompanied else 0.0
    return Frame(
        yaw=yaw,
        phase=float(rng.uniform(0, 2 * np.pi)),
        state=state,
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


def _bystander(config: SyntheticConfig, camid: int, aside: float, rng: np.random.Generator) -> Bystander:
    return Bystander(
        pid=FIRST_PID["bystander"] + int(rng.integers(_NUM_BYSTANDERS)),
        yaw=_draw_yaw(config, camid, rng),
        phase=float(rng.uniform(0, 2 * np.pi)),
        dx=aside + float(rng.normal(0, 0.025)),
        zoom=float(rng.uniform(0.93, 1.05)),
    )


def _occluder(kind: float, x: float, y: float, size: float) -> Occluder:
    if kind < 0.4:
        return Occluder("wall", 0.5, 0.60 + 0.26 * y, 0.0)
    if kind < 0.7:
        return Occluder("post", 0.12 + 0.76 * x, 0.5, 0.04 + 0.05 * size)
    return Occluder("bush", 0.1 + 0.8 * x, 0.72 + 0.2 * y, 0.18 + 0.16 * size)


def _draw_yaw(config: SyntheticConfig, camid: int, rng: np.random.Generator) -> float:
    """Draw a heading; the view gap moves views to one side that neighbouring cameras do not share."""
    manner, views = MANNERS[config.kind], make_camera(config.kind, config.seed, camid).views
    names = list(manner.views)
    if config.view_gap:
        only = np.eye(len(names))[names.index("front" if camid % 2 else "back")]
        views = (1 - config.view_gap) * views + config.view_gap * only
    view, within, side = rng.random(3)
    middles = manner.headings[names[min(np.searchsorted(np.cumsum(views), view, "right"), len(names) - 1)]]
    return float(middles[int(side * len(middles))] + manner.spread * (within - 0.5))


def view_of(kind: str, yaw: float) -> str:
    """Return the name of the view of a heading."""
    manner, facing = MANNERS[kind], np.cos(yaw)
    if abs(facing) > manner.facing:
        return "front" if facing > 0 else "back"
    return "side" if abs(facing) <= manner.sidelong else "diagonal"
