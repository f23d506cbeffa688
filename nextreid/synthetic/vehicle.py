"""A vehicle: the attributes that captions can name, as often as in published ones, and the body that they cannot."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..data.rng import seeded_rng
from .config import VehiclesConfig
from .identity import Choices, Identity, choices, choose, owner_of, reflectances, tint
from .scene import Frame, Visit
from .sensors import Material

MARGINALS: Mapping[str, Choices] = {
    # published: 0.53 sedans, 0.29 SUVs and 0.15 hatchbacks; the others are drawn more often to be there at all
    "vehicle_type": {
        "sedan": 0.32,
        "SUV": 0.22,
        "hatchback": 0.13,
        "van": 0.09,
        "pickup truck": 0.08,
        "truck": 0.08,
        "bus": 0.08,
    },
    "branding": choices(
        "Volkswagen Ford Buick Honda Geely Volvo Mazda Toyota Audi Hyundai Nissan BMW",
        (0.24, 0.10, 0.09, 0.09, 0.08, 0.07, 0.07, 0.07, 0.05, 0.05, 0.05, 0.04),
    ),
    "color": choices(
        "white silver black red gray blue brown orange yellow green",
        (0.36, 0.17, 0.16, 0.10, 0.08, 0.06, 0.03, 0.02, 0.01, 0.01),
    ),
    "exterior_condition": {"used": 0.85, "new": 0.13, "worn": 0.02},
    "window_condition": {"tinted": 0.83, "clear": 0.15, "dirty": 0.02},
    "window_style": {"curved": 0.65, "flat": 0.35},
    "headlights_shape": {"angular": 0.58, "rectangular": 0.24, "oval": 0.14, "round": 0.04},
    "taillights_shape": {"angular": 0.52, "rectangular": 0.38, "oval": 0.08, "round": 0.02},
    "front_grille_shape": {"horizontal": 0.70, "hexagonal": 0.18, "vertical": 0.06, "angular": 0.06},
    "front_grille_edges": {"rounded": 0.58, "sharp": 0.24, "straight": 0.18},
    "roof_type": {"sloped": 0.68, "flat": 0.29, "sunroof": 0.03},
    "roof_condition": {"clean": 0.97, "dirty": 0.03},
    "tires_type": {"regular": 0.76, "street": 0.24},
    "tires_condition": {"new": 0.62, "used": 0.30, "worn": 0.08},
    "tire_size": {"medium": 0.95, "small": 0.02, "large": 0.03},
    "bumper_condition": {"intact": 0.98, "damaged": 0.02},
    "side_mirror_condition": {"intact": 0.99, "missing": 0.01},
    "spoiler": {"not present": 0.93, "present": 0.07},
    "roof_rack": {"not present": 0.85, "present": 0.15},
    "exhaust_type": {"hidden": 0.78, "single": 0.14, "dual": 0.08},
}
"""How often the published captions of MSVR310 name each value of a field, but for the types of vehicle."""

_STYLES: Mapping[str, tuple[str, str, str]] = {
    "Volkswagen": ("rectangular", "rectangular", "horizontal"),
    "Ford": ("angular", "angular", "hexagonal"),
    "Buick": ("angular", "angular", "vertical"),
    "Honda": ("angular", "angular", "horizontal"),
    "Geely": ("oval", "rectangular", "hexagonal"),
    "Volvo": ("rectangular", "angular", "angular"),
    "Mazda": ("oval", "round", "angular"),
    "Toyota": ("angular", "rectangular", "horizontal"),
    "Audi": ("angular", "rectangular", "hexagonal"),
    "Hyundai": ("angular", "oval", "hexagonal"),
    "Nissan": ("oval", "angular", "horizontal"),
    "BMW": ("round", "angular", "vertical"),
}
_STYLED = 0.7  # how often lights and grille are as the make's others

_WORK = ("truck", "bus")
_COLORS: Mapping[str, tuple[float, float, float]] = {
    "black": (28, 28, 31),
    "white": (228, 228, 226),
    "gray": (104, 106, 110),
    "silver": (172, 175, 178),
    "red": (160, 34, 38),
    "blue": (44, 74, 146),
    "green": (52, 108, 66),
    "yellow": (214, 178, 46),
    "orange": (208, 110, 40),
    "brown": (98, 72, 54),
}
MATERIALS = ("body", "trim", "roof", "cargo", "rim", "bumper", "grille", "mirror")
"""What has a colour, NIR reflectance and temperature of its own in each identity."""
_LIVERIES = {"plain": 0.52, "stripe": 0.16, "two-tone": 0.10, "sill": 0.14, "panel": 0.08}
_WORK_LIVERIES = {"plain": 0.15, "stripe": 0.25, "two-tone": 0.15, "sill": 0.10, "panel": 0.35}
_WARMTH = {
    "body": 0.13,
    "trim": 0.12,
    "roof": 0.08,
    "cargo": 0.10,
    "rim": 0.12,
    "bumper": 0.16,
    "grille": 0.14,
    "mirror": 0.10,
}
_MIDDLE_WARMTH = 0.12
_ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"  # without I and O, as on plates
_NUM_PLATES = len(_ALPHABET) ** 5


@dataclass(frozen=True, slots=True)
class VehicleBody:
    """What captions do not describe of a vehicle. Lengths are factors on those of its type."""

    length: float
    width: float
    height: float
    hood: float  # length of the hood
    wheelbase: float
    wheel: float  # radius of the wheels
    rake: float  # slant of the windscreen and rear window
    belt: float  # height of the windows' lower edge
    lamp: float  # size of the lights
    livery: str
    livery_at: float  # where a stripe or panel is, 0 to 1
    spokes: int
    doors: int  # side doors per side
    stickers: tuple[float, ...]  # places of inspection stickers on the windscreen, 0 to 1
    plate: str
    plate_colors: tuple[tuple[float, float, float], tuple[float, float, float]]  # ground and characters
    window: tuple[float, float]  # display grey and NIR reflectance of the glass
    tire: float  # display grey
    color: np.ndarray  # (8, 3) display colours from 0 to 1 in the order of MATERIALS
    nir: np.ndarray  # (8,) near-infrared reflectance
    heat: np.ndarray  # (8,) temperature above the surroundings
    engine: float  # how hot the hood becomes above a running engine


def draw_vehicle_attributes(rng: np.random.Generator) -> dict[str, str]:
    """Draw the attributes of a vehicle by name, or of a pair of twins; view, light and headlights are the frame's."""
    drawn = {name: choose(rng, values) for name, values in MARGINALS.items()}
    shapes = ("headlights_shape", "taillights_shape", "front_grille_shape")
    for name, shape in zip(shapes, _STYLES[drawn["branding"]], strict=True):
        drawn[name] = shape if rng.random() < _STYLED else drawn[name]
    kind, other = drawn["vehicle_type"], rng.random()
    if kind in _WORK:  # neither slanted roofs nor spoilers; big wheels
        drawn |= {"roof_type": "flat", "spoiler": "not present", "roof_rack": "not present", "tire_size": "large"}
    if kind == "SUV" and other < 0.35:
        drawn["roof_rack"] = "present"
    if kind == "pickup truck":
        drawn["spoiler"] = "not present"
    return drawn


def make_vehicle(config: VehiclesConfig, pid: int) -> Identity[VehicleBody]:
    """Build one vehicle, as a function of the seed and `pid` alone; body and attributes have separate streams."""
    owner, twin = owner_of(config, pid)
    attributes = draw_vehicle_attributes(seeded_rng("vehicles", config.seed, "attributes", owner))
    body = _make_body(seeded_rng("vehicles", config.seed, "body", pid), attributes, config, pid)
    return Identity(pid=pid, attributes=attributes, body=body, twin=twin)


def plate_of(seed: int, pid: int) -> str:
    """Return the seven characters of a plate; no two pids of one seed share one."""
    shift = int(seeded_rng("vehicles", seed, "plates").integers(_NUM_PLATES))
    number, characters = (pid * 15_485_863 + shift) % _NUM_PLATES, ""  # a prime, so that every pid has its own
    for _ in range(5):
        number, index = divmod(number, len(_ALPHABET))
        characters += _ALPHABET[index]
    return "NA" + characters


def _make_body(
    rng: np.random.Generator, attributes: Mapping[str, str], config: VehiclesConfig, pid: int
) -> VehicleBody:
    def spread(half: float) -> float:
        return 1 + config.structure * half * float(rng.uniform(-1, 1))

    names = "length width height hood wheelbase wheel rake belt lamp".split()
    halves = (0.06, 0.04, 0.05, 0.14, 0.04, 0.06, 0.18, 0.05, 0.22)
    build = {name: spread(half) for name, half in zip(names, halves, strict=True)}
    build["wheel"] *= {"small": 0.9, "medium": 1.0, "large": 1.1}[attributes["tire_size"]]
    work = attributes["vehicle_type"] in _WORK
    livery, livery_at = choose(rng, _WORK_LIVERIES if work else _LIVERIES), float(rng.random())
    hues = list(_COLORS)
    own, second = attributes["color"], hues[int(rng.integers(len(hues)))]
    dark = "black" if rng.random() < 0.8 else "gray"
    parts = {
        "body": own,
        "trim": second,
        "roof": second if livery == "two-tone" else own,
        "cargo": second if attributes["vehicle_type"] == "truck" else "black",
        "rim": choose(rng, {"silver": 0.6, "gray": 0.2, "black": 0.2}),
        "bumper": own if rng.random() < 0.75 else dark,
        "grille": "black" if rng.random() < 0.75 else "silver",
        "mirror": own if rng.random() < 0.7 else dark,
    }
    shades = tint(rng, [_COLORS[parts[material]] for material in MATERIALS])
    for material in ("roof", "bumper", "mirror"):  # the same paint is the same colour
        if parts[material] == own:
            shades[MATERIALS.index(material)] = shades[0]
    dust = {"new": 0.0, "used": 0.06, "worn": 0.3}[attributes["exterior_condition"]]
    shades = (1 - dust) * shades + dust * np.array([0.44, 0.42, 0.38])
    if attributes["roof_condition"] == "dirty":
        shades[2] = 0.5 * shades[2] + 0.5 * np.array([0.40, 0.37, 0.32])
    nir = reflectances(rng, shades, config.nir_corr)
    nir[(shades == shades[0]).all(1)] = nir[0]
    heat = np.array([_WARMTH[material] for material in MATERIALS]) + rng.normal(0, 0.05, len(MATERIALS))
    heat = _MIDDLE_WARMTH + config.heat_sep * (heat - _MIDDLE_WARMTH)
    engine = 1 + config.heat_sep * 0.35 * float(rng.uniform(-1, 1))
    glass = {"tinted": (0.10, 0.10), "clear": (0.20, 0.24), "dirty": (0.30, 0.26)}[attributes["window_condition"]]
    white, blue, black = (0.92, 0.92, 0.92), (0.10, 0.22, 0.62), (0.06, 0.06, 0.07)
    ground, characters = ((0.88, 0.70, 0.14), black) if work else (blue, white)
    if not work and rng.random() < 0.12:  # electric
        ground, characters = (0.55, 0.82, 0.62), black
    stickers = tuple(float(place) for place in rng.uniform(0, 1, int(rng.integers(0, 4))))
    return VehicleBody(
        **build,
        livery=livery,
        livery_at=livery_at,
        spokes=int(rng.choice((4, 5, 6, 7, 8, 10))),
        doors=2 if rng.random() < 0.85 else 1,
        stickers=stickers,
        plate=plate_of(config.seed, pid) if config.plates else "",
        plate_colors=(ground, characters),
        window=(glass[0] * float(rng.uniform(0.8, 1.2)), glass[1] * float(rng.uniform(0.7, 1.3))),
        tire={"new": 0.10, "used": 0.14, "worn": 0.22}[attributes["tires_condition"]],
        color=shades,
        nir=nir,
        heat=heat,
        engine=engine,
    )


def vehicle_materials(body: VehicleBody, visit: Visit, frame: Frame) -> dict[str, Material]:
    """Return what the sensors see of each region of a vehicle.

    Lit lamps outshine RGB and NIR whatever the light; a plate throws the camera's NIR lamp back. Temperatures are
    above the surroundings: the engine warms hood, grille and underbody, driving warms the wheels, the exhaust is the
    hottest, and glass mirrors the cold sky.
    """
    air, run = visit.ambient, visit.engine
    glow = {"on": 1.0, "dimmed": 0.35, "off": 0.0}[frame.state]
    lamp = max(0.62, (3.0 * glow / frame.light) ** 0.45)  # display values are linear ones to the power of 1 / 2.2
    tail = max(0.45, (0.7 * glow / frame.light) ** 0.45)
    rows: dict[str, Material] = {
        name: (*color, nir, air + warm)
        for name, color, nir, warm in zip(MATERIALS, body.color, body.nir, body.heat, strict=True)
    }
    paint, trim = rows["body"], rows["trim"]
    glass, nir_glass = body.window
    ground, characters = body.plate_colors
    back = 1.25 if visit.night else 0.75  # what a plate throws back of the NIR light
    return rows | {
        "seam": (*(body.color[0] * 0.35), 0.5 * body.nir[0], air + 0.03),
        "underbody": (0.05, 0.05, 0.05, 0.05, air + 0.10 + 0.26 * run),
        "hood": (*paint[:4], air + body.heat[0] + 0.40 * body.engine * run),
        "rack": (0.16, 0.16, 0.17, 0.40, air + 0.01),
        "glass": (glass, glass * 1.04, glass * 1.12, nir_glass, air - 0.04),
        "sunroof": (0.06, 0.06, 0.07, 0.07, air - 0.06),
        "sticker": (*trim[:3], 0.75, air - 0.02),
        "tire": (body.tire, body.tire, body.tire * 1.03, 0.12, air + 0.14 + 0.30 * run),
        "rim": (*rows["rim"][:4], air + body.heat[4] + 0.46 * run),
        "headlight": (lamp, lamp, lamp * 0.98, max(0.80, 2.0 * glow), air + 0.05 + 0.28 * glow),
        "taillight": (tail, 0.10 + 0.25 * glow, 0.10 + 0.15 * glow, max(0.55, 1.2 * glow), air + 0.04 + 0.10 * glow),
        "grille": (*rows["grille"][:4], air + body.heat[6] + 0.44 * body.engine * run),
        "chrome": (0.74, 0.75, 0.76, 0.85, air + 0.04 + 0.20 * run),
        "badge": (0.86, 0.87, 0.88, 0.95, air + 0.02 + 0.16 * run),
        "plate": (*ground, back, air + 0.02),
        "characters": (*characters, 0.45 * back, air + 0.04),
        "spoiler": (*rows["bumper"][:4], air + 0.02),
        "exhaust": (0.30, 0.30, 0.31, 0.50, air + 0.15 + 0.75 * run),
    }
