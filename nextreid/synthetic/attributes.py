"""What captions can say about a person: menus, and how often each value occurs in the published captions."""

from collections.abc import Mapping

import numpy as np

Menu = Mapping[str, float]

GENDERS: Menu = {"male": 0.64, "female": 0.36}
AGES: Menu = {"adult": 0.95, "teenager": 0.03, "child": 0.02}
UPPER: Menu = {"jacket": 0.44, "t-shirt": 0.31, "sweater": 0.12, "dress": 0.05, "hoodie": 0.04, "coat": 0.04}
LOWER: Menu = {"trousers": 0.60, "shorts": 0.17, "jeans": 0.12, "skirt": 0.11}
UPPER_COLORS: Menu = {
    "black": 0.30,
    "white": 0.26,
    "gray": 0.15,
    "blue": 0.08,
    "red": 0.05,
    "brown": 0.05,
    "beige": 0.03,
    "green": 0.03,
    "pink": 0.02,
    "yellow": 0.01,
    "purple": 0.01,
    "orange": 0.01,
}
LOWER_COLORS: Menu = {
    "black": 0.54,
    "blue": 0.17,
    "gray": 0.13,
    "white": 0.06,
    "brown": 0.04,
    "beige": 0.03,
    "green": 0.01,
    "red": 0.01,
    "pink": 0.01,
}
HAIR_LENGTHS: Menu = {"short": 0.62, "medium": 0.25, "long": 0.13}
HAIR_STYLES: Menu = {"straight": 0.92, "curly": 0.05, "wavy": 0.03}
FOOTWEAR: Menu = {"sneakers": 0.80, "boots": 0.12, "sandals": 0.06, "heels": 0.02}
HELD: Menu = {"none": 0.80, "phone": 0.12, "bottle": 0.03, "umbrella": 0.03, "book": 0.02}


def pick(rng: np.random.Generator, menu: Menu, without: tuple[str, ...] = ()) -> str:
    """Draw one value of a menu.

    Args:
        rng: Generator; one number is drawn.
        menu: Value to share; the shares need not add up to one.
        without: Values that must not come out.

    Returns:
        The value.
    """
    values = [value for value in menu if value not in without]
    left = rng.random() * sum(menu[value] for value in values)
    for value in values:
        left -= menu[value]
        if left < 0:
            return value
    return values[-1]


def draw_attributes(rng: np.random.Generator) -> dict[str, str]:
    """Draw the described half of an identity.

    Args:
        rng: Generator of this identity's (or pair of twins') attributes.

    Returns:
        Attributes that last, by name; view, light and held things belong to the moment. With a dress there is no lower
        garment (``""``).
    """
    gender = pick(rng, GENDERS)
    woman = gender == "female"
    age = pick(rng, AGES)
    upper = pick(rng, {**UPPER, "dress": 3 * UPPER["dress"]}, () if woman else ("dress",))
    lower = pick(rng, {**LOWER, "skirt": 3 * LOWER["skirt"]}, () if woman else ("skirt",))
    upper_color, lower_color = pick(rng, UPPER_COLORS), pick(rng, LOWER_COLORS)
    if lower == "jeans":
        lower_color = "blue" if rng.random() < 0.75 else "black"
    if upper == "dress":
        lower, lower_color = "", ""
    hair = pick(rng, {"short": 0.12, "medium": 0.45, "long": 0.43} if woman else {"short": 0.93, "medium": 0.07})
    hair_style = pick(rng, HAIR_STYLES)
    footwear = pick(rng, FOOTWEAR, () if woman else ("heels",))
    styles = {"sneakers": {"casual": 0.78, "athletic": 0.22}, "heels": {"formal": 1.0}}
    footwear_style = pick(rng, styles.get(footwear, {"casual": 1.0}))
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
