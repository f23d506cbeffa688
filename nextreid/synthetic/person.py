"""A person: the attributes that captions can name, as often as in published ones, and the body that they cannot."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..data.rng import seeded_rng
from .config import PersonsConfig
from .figure import PERSON
from .identity import Choices, Identity, choices, choose, owner_of, reflectances, tint
from .scene import MANNERS, Frame, Visit
from .sensors import Material

MARGINALS: Mapping[str, Choices] = {
    "gender": {"male": 0.64, "female": 0.36},
    "age": {"adult": 0.95, "teenager": 0.03, "child": 0.02},
    "upper_clothing": choices("jacket t-shirt sweater dress hoodie coat", (0.44, 0.31, 0.12, 0.05, 0.04, 0.04)),
    "lower_clothing": {"trousers": 0.60, "shorts": 0.17, "jeans": 0.12, "skirt": 0.11},
    "upper_clothing_color": choices(
        "black white gray blue red brown beige green pink yellow purple orange",
        (0.30, 0.26, 0.15, 0.08, 0.05, 0.05, 0.03, 0.03, 0.02, 0.01, 0.01, 0.01),
    ),
    "lower_clothing_color": choices(
        "black blue gray white brown beige green red pink", (0.54, 0.17, 0.13, 0.06, 0.04, 0.03, 0.01, 0.01, 0.01)
    ),
    "hair_length": {"short": 0.62, "medium": 0.25, "long": 0.13},
    "hair_style": {"straight": 0.92, "curly": 0.05, "wavy": 0.03},
    "footwear": {"sneakers": 0.80, "boots": 0.12, "sandals": 0.06, "heels": 0.02},
    "holding": MANNERS["persons"].states,
}
"""How often the published captions name each value of a field."""


def draw_attributes(rng: np.random.Generator) -> dict[str, str]:
    """Draw the attributes of an identity by name, or of a pair of twins.

    View, light and held things are not among them: they belong to the frame. With a dress there is no lower garment
    (``""``).
    """
    uppers, lowers = MARGINALS["upper_clothing"], MARGINALS["lower_clothing"]
    gender, age = (choose(rng, MARGINALS[name]) for name in ("gender", "age"))
    woman = gender == "female"
    upper = choose(rng, {**uppers, "dress": 3 * uppers["dress"]}, () if woman else ("dress",))
    lower = choose(rng, {**lowers, "skirt": 3 * lowers["skirt"]}, () if woman else ("skirt",))
    upper_color, lower_color = (choose(rng, MARGINALS[f"{part}_clothing_color"]) for part in ("upper", "lower"))
    if lower == "jeans":
        lower_color = "blue" if rng.random() < 0.75 else "black"
    if upper == "dress":
        lower, lower_color = "", ""
    hair = choose(rng, {"short": 0.12, "medium": 0.45, "long": 0.43} if woman else {"short": 0.93, "medium": 0.07})
    hair_style = choose(rng, MARGINALS["hair_style"])
    footwear = choose(rng, MARGINALS["footwear"], () if woman else ("heels",))
    styles = {"sneakers": {"casual": 0.78, "athletic": 0.22}, "heels": {"formal": 1.0}}
    footwear_style = choose(rng, styles.get(footwear, {"casual": 1.0}))
    chances = {"glasses": 0.22, "handbag": 0.32 if woman else 0.05, "backpack": 0.36, "suitcase": 0.05}
    carried = {name: "yes" if rng.random() < chance else "no" for name, chance in chances.items()}
    return {
        "gender": gender,
        "age": age,
        "upper_clothing": upper,
        "upper_clothing_color": upper_color,
        "lower_clothing": lower,
        "lower_clothing_color": lower_color,
        "hair_length": hair,
        "hair_style": hair_style,
        "footwear": footwear,
        "footwear_style": footwear_style,
        **carried,
    }


COLORS: Mapping[str, tuple[float, float, float]] = {
    "black": (30, 30, 33),
    "white": (226, 226, 222),
    "gray": (122, 123, 126),
    "red": (156, 48, 50),
    "blue": (58, 78, 128),
    "green": (66, 102, 72),
    "yellow": (200, 176, 88),
    "brown": (104, 80, 60),
    "pink": (206, 150, 166),
    "purple": (98, 72, 116),
    "orange": (196, 116, 64),
    "beige": (192, 176, 150),
}
_HUES = tuple(COLORS)
_UPPER_TRIMS = {"plain": 0.34, "stripes": 0.14, "yoke": 0.14, "logo": 0.16, "hem": 0.10, "sleeves": 0.12}
_LOWER_TRIMS = {"plain": 0.70, "side stripe": 0.18, "cuffs": 0.12}
MATERIALS = ("upper", "upper_trim", "inner", "lower", "lower_trim", "shoe", "sole", "backpack", "handbag", "suitcase")
"""What has a colour, NIR reflectance and temperature of its own in each identity."""

_WARMTH = (
    {"t-shirt": 0.74, "dress": 0.70, "sweater": 0.60, "hoodie": 0.55, "jacket": 0.50, "coat": 0.42}
    | {"shorts": 0.68, "skirt": 0.66, "trousers": 0.60, "jeans": 0.54}
    | {"sneakers": 0.46, "boots": 0.38, "sandals": 0.60, "heels": 0.50}
)
_MIDDLE_WARMTH = 0.55


_SKIN_HEAT, _HAIR_HEAT = 0.92, 0.66


@dataclass(frozen=True, slots=True)
class Body:
    """What captions do not describe of an identity. Lengths are in units of the stature, widths are half widths."""

    stature: float  # as a fraction of the image's height
    shoulder: float
    chest: float
    waist: float
    hip: float
    depth: float  # half depth of the chest
    leg: float  # height of the crotch
    head: float  # height of the head
    arm: float  # length of the arm
    limb: float  # thickness factor of arms and legs
    stoop: float  # forward lean of the shoulders
    fit: float  # looseness of the clothes
    stride: float  # swing of the legs in radians
    bag: float  # size factor of bags
    side: int  # 1 when bags hang on the left, -1 on the right
    open: bool  # whether a jacket or coat is worn open over an inner garment
    upper_trim: str  # pattern of the upper garment
    lower_trim: str
    color: np.ndarray  # (10, 3) display colours from 0 to 1 in the order of MATERIALS
    nir: np.ndarray  # (10,) near-infrared reflectance
    heat: np.ndarray  # (10,) temperature on the camera's scale from 0 to 1
    skin: np.ndarray  # display colour
    hair: np.ndarray  # display colour
    hair_nir: float


def make_person(config: PersonsConfig, pid: int) -> Identity[Body]:
    """Build one person, as a function of the seed and `pid` alone; body and attributes have separate streams."""
    if config.evidence != "all":
        return _alike(config, pid)
    owner, twin = owner_of(config, pid)
    attributes = draw_attributes(seeded_rng("persons", config.seed, "attributes", owner))
    body = _make_body(seeded_rng("persons", config.seed, "body", pid), attributes, config)
    return Identity(pid=pid, attributes=attributes, body=body, twin=twin)


def _alike(config: PersonsConfig, pid: int) -> Identity[Body]:
    """Build one of the identities that differ in what one modality sees of one part."""
    part, modality = config.evidence.split(":")
    attributes = draw_attributes(seeded_rng("persons", config.seed, "attributes of all"))
    if part in attributes:  # a bag
        attributes[part] = "yes"
    common = _make_body(seeded_rng("persons", config.seed, "body of all"), attributes, config)
    own = _make_body(seeded_rng("persons", config.seed, "body", pid), attributes, config)
    field = {"rgb": "color", "nir": "nir", "tir": "heat"}[modality]
    values = getattr(common, field).copy()
    rows = [row for row, material in enumerate(MATERIALS) if PERSON.parts_of[material] == part]
    values[rows] = getattr(own, field)[rows]
    return Identity(pid=pid, attributes=attributes, body=replace(common, **{field: values}), twin=-1)


def _make_body(rng: np.random.Generator, attributes: Mapping[str, str], config: PersonsConfig) -> Body:
    def spread(middle: float, half: float) -> float:
        return middle + config.structure * half * float(rng.uniform(-1, 1))

    woman, child = attributes["gender"] == "female", attributes["age"] == "child"
    weight = spread(0.0, 1.0)  # one build axis moves all girths together
    girth = 1 + 0.16 * weight
    upper, lower = attributes["upper_clothing"], attributes["lower_clothing"]
    build = {
        "stature": spread(0.87 if woman else 0.90, 0.05) * {"child": 0.74, "teenager": 0.93}.get(attributes["age"], 1),
        "shoulder": spread(0.112 if woman else 0.127, 0.013) * (1 + 0.07 * weight),
        "chest": spread(0.090 if woman else 0.098, 0.008) * girth,
        "waist": spread(0.074 if woman else 0.086, 0.009) * girth,
        "hip": spread(0.098 if woman else 0.090, 0.010) * girth,
        "depth": spread(0.060, 0.010) * girth,
        "leg": spread(0.475, 0.028) - (0.02 if child else 0),
        "head": spread(0.138, 0.010) * (1.2 if child else 1),
        "arm": spread(0.335, 0.022),
        "limb": spread(0.92 if woman else 1.0, 0.10) * girth,
        "stoop": spread(0.022, 0.032),
        "fit": spread(1.0, 0.55),
        "stride": spread(0.42, 0.16),
        "bag": spread(1.0, 0.22),
    }
    side = 1 if rng.random() < 0.5 else -1
    worn_open = bool(rng.random() < 0.45) and upper in ("jacket", "coat", "hoodie")
    upper_trim, lower_trim = choose(rng, _UPPER_TRIMS), choose(rng, _LOWER_TRIMS)

    def hue() -> str:
        return _HUES[int(rng.integers(len(_HUES)))]

    names = {
        "upper": attributes["upper_clothing_color"],
        "upper_trim": hue(),
        "inner": hue(),
        "lower": attributes["lower_clothing_color"] or hue(),
        "lower_trim": hue(),
        "shoe": choose(rng, {"black": 0.4, "white": 0.25, "gray": 0.15, "brown": 0.1, "red": 0.05, "blue": 0.05}),
        "sole": "white" if rng.random() < 0.6 else "black",
        "backpack": choose(rng, {"black": 0.4, "blue": 0.15, "gray": 0.15, "red": 0.1, "green": 0.1, "beige": 0.1}),
        "handbag": choose(rng, {"black": 0.35, "brown": 0.25, "beige": 0.15, "red": 0.1, "white": 0.15}),
        "suitcase": choose(rng, {"black": 0.4, "blue": 0.2, "gray": 0.2, "red": 0.1, "purple": 0.1}),
    }
    color = tint(rng, [COLORS[names[material]] for material in MATERIALS])
    nir = reflectances(rng, color, config.nir_corr)
    warm_upper, warm_lower = _WARMTH[upper], _WARMTH.get(lower, 0.6)
    garments = [warm_upper, warm_upper - 0.04, 0.72, warm_lower, warm_lower - 0.03, _WARMTH[attributes["footwear"]]]
    warmth = np.array([*garments, 0.34, 0.33, 0.36, 0.28])
    warmth = warmth + rng.normal(0, 0.05, len(MATERIALS))
    heat = _MIDDLE_WARMTH + config.heat_sep * (warmth - _MIDDLE_WARMTH)
    tone, old = rng.uniform(0.62, 1.0), rng.random() < 0.12
    return Body(
        **build,
        side=side,
        open=worn_open,
        upper_trim=upper_trim,
        lower_trim=lower_trim,
        color=color,
        nir=nir,
        heat=heat,
        skin=np.array([0.82, 0.64, 0.53]) * tone,
        hair=np.array([0.45, 0.44, 0.43]) if old else np.array([0.15, 0.12, 0.10]) * rng.uniform(0.6, 1.8),
        hair_nir=float(rng.uniform(0.12, 0.45)),
    )


def person_materials(body: Body, visit: Visit, frame: Frame) -> dict[str, Material]:
    """Return what the sensors see of each region of a person; what is held has the temperature of the air."""
    rows: dict[str, Material] = {
        **dict(zip(MATERIALS, np.column_stack([body.color, body.nir, body.heat]), strict=True)),
        "skin": (*body.skin, 0.50, _SKIN_HEAT),
        "features": (*(body.skin * 0.55), 0.30, _SKIN_HEAT - 0.06),
        "hair": (*body.hair, body.hair_nir, _HAIR_HEAT),
        "glasses": (0.10, 0.10, 0.12, 0.08, 0.50),
    }
    for region, (grey, nir, warm) in {"umbrella": (0.22, 0.40, 0.06), "held": (0.14, 0.35, 0.22)}.items():
        rows[region] = (grey, grey, grey * 1.05, nir, visit.ambient + warm)
    return rows
