"""The attributes that captions can name, and how often each value occurs in the published captions."""

from collections.abc import Mapping

import numpy as np

Choices = Mapping[str, float]
"""Values with their relative frequencies."""


def _choices(values: str, frequencies: tuple[float, ...]) -> Choices:
    return dict(zip(values.split(), frequencies, strict=True))


GENDERS: Choices = {"male": 0.64, "female": 0.36}
AGES: Choices = {"adult": 0.95, "teenager": 0.03, "child": 0.02}
UPPER: Choices = {"jacket": 0.44, "t-shirt": 0.31, "sweater": 0.12, "dress": 0.05, "hoodie": 0.04, "coat": 0.04}
LOWER: Choices = {"trousers": 0.60, "shorts": 0.17, "jeans": 0.12, "skirt": 0.11}
UPPER_COLORS = _choices(
    "black white gray blue red brown beige green pink yellow purple orange",
    (0.30, 0.26, 0.15, 0.08, 0.05, 0.05, 0.03, 0.03, 0.02, 0.01, 0.01, 0.01),
)
LOWER_COLORS = _choices(
    "black blue gray white brown beige green red pink", (0.54, 0.17, 0.13, 0.06, 0.04, 0.03, 0.01, 0.01, 0.01)
)
HAIR_LENGTHS: Choices = {"short": 0.62, "medium": 0.25, "long": 0.13}
HAIR_STYLES: Choices = {"straight": 0.92, "curly": 0.05, "wavy": 0.03}
FOOTWEAR: Choices = {"sneakers": 0.80, "boots": 0.12, "sandals": 0.06, "heels": 0.02}
HELD: Choices = {"none": 0.80, "phone": 0.12, "bottle": 0.03, "umbrella": 0.03, "book": 0.02}


def choose(rng: np.random.Generator, choices: Choices, without: tuple[str, ...] = ()) -> str:
    """Draw one value, except those `without`, with one random number; the frequencies need not add up to one."""
    values = [value for value in choices if value not in without]
    left = rng.random() * sum(choices[value] for value in values)
    for value in values:
        left -= choices[value]
        if left < 0:
            return value
    return values[-1]


def draw_attributes(rng: np.random.Generator) -> dict[str, str]:
    """Draw the attributes of an identity by name, or of a pair of twins.

    View, light and held things are not among them: they belong to the frame. With a dress there is no lower garment
    (``""``).
    """
    gender = choose(rng, GENDERS)
    woman = gender == "female"
    age = choose(rng, AGES)
    upper = choose(rng, {**UPPER, "dress": 3 * UPPER["dress"]}, () if woman else ("dress",))
    lower = choose(rng, {**LOWER, "skirt": 3 * LOWER["skirt"]}, () if woman else ("skirt",))
    upper_color, lower_color = choose(rng, UPPER_COLORS), choose(rng, LOWER_COLORS)
    if lower == "jeans":
        lower_color = "blue" if rng.random() < 0.75 else "black"
    if upper == "dress":
        lower, lower_color = "", ""
    hair = choose(rng, {"short": 0.12, "medium": 0.45, "long": 0.43} if woman else {"short": 0.93, "medium": 0.07})
    hair_style = choose(rng, HAIR_STYLES)
    footwear = choose(rng, FOOTWEAR, () if woman else ("heels",))
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
