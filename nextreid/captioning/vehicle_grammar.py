"""The nine sentences of a vehicle's caption: how they are written, and how published ones are parsed."""

import re
from collections.abc import Mapping

from .person_grammar import Reading, Slots
from .phrasing import Phrasing
from .text import sentence, with_article, words

_FIELDS = {
    "vehicle": "color branding vehicle_type view illumination capture_time target_clarity",
    "body": "exterior_condition window_condition window_style",
    "lights": "headlights_condition headlights_shape taillights_shape front_grille_shape front_grille_edges",
    "roof": "roof_condition roof_type tires_condition tire_size tires_type bumper_condition",
    "mirrors": "side_mirror_condition side_mirrors",
    "plate": "license_plate",
    "spoiler": "spoiler",
    "rack": "roof_rack",
    "exhaust": "exhaust_type",
}
SENTENCES = {name: tuple(fields.split()) for name, fields in _FIELDS.items()}
"""Sentences in their order, with the fields that they state."""
LEANING: Mapping[str, str] = {}
"""Fields that are stated only beside another one."""
SPLIT_WORDS = ("color", "vehicle_type")
"""Fields whose known words tell where one slot ends and the next begins."""

_ROOF = ("roof_condition", "roof_type")
_STATES = {"mirrors": "Side mirrors are", "plate": "License plate is", "spoiler": "Spoiler is", "rack": "Roof rack is"}


def write(name: str, slots: Slots, phrasing: Phrasing) -> str:
    """Write one sentence of `SENTENCES` from clean values by field; ``""`` if it has none."""
    if name in _STATES:
        state = next((slots[field] for field in SENTENCES[name] if slots.get(field)), "")
        return _state(f"{_STATES[name]} {state}", phrasing) if state else ""
    if name == "exhaust":
        pipes = slots.get("exhaust_type")
        what = "a single pipe" if pipes == "single" and phrasing.definite == "the" else f"{pipes} pipes"
        return _state(f"Exhaust system features {what}", phrasing) if pipes else ""
    return {"vehicle": _vehicle, "body": _body, "lights": _lights, "roof": _roof}[name](slots, phrasing)


def _state(text: str, phrasing: Phrasing) -> str:
    return f"The {text[0].lower()}{text[1:]}." if phrasing.definite == "the" else f"{text}."


def _vehicle(slots: Slots, phrasing: Phrasing) -> str:
    what = words(slots, "color", "branding", "vehicle_type")
    view, light = slots.get("view"), words(slots, "illumination", "capture_time")
    clarity = slots.get("target_clarity")
    if not (what or view or light or clarity):
        return ""
    if not slots.get("vehicle_type"):
        what = f"{what} vehicle".strip()
    text = f"a {what}" if phrasing.article == "a" else with_article(what)
    text += f" {phrasing.seen} from the {view}" if view else f" {phrasing.seen}" if light else ""
    text += f" in {light} light" if light else ""
    text += f" (image appears {clarity})" if clarity else ""
    return sentence(text)


def _body(slots: Slots, phrasing: Phrasing) -> str:
    windows = words(slots, "window_condition", "window_style")
    text = _joined(" with ", (slots.get("exterior_condition"), "wear"), (windows, "windows"))
    return f"The vehicle shows {text}." if text else ""


def _lights(slots: Slots, phrasing: Phrasing) -> str:
    head, tail = words(slots, "headlights_condition", "headlights_shape"), slots.get("taillights_shape")
    lights = ((head, "headlights"), (tail, "taillights"))
    text = _joined(" and ", *lights)
    shape, edges = slots.get("front_grille_shape"), slots.get("front_grille_edges")
    grille = f"{shape} grille" if shape else "grille"
    grille = f"a {grille}" if phrasing.article == "a" else with_article(grille)
    grille += f" with {edges} edges" if edges else ""
    if _runs_on(slots, phrasing):
        link = "roof above" if phrasing.roof == "above" else f"roof {phrasing.roof} above"
        text += f", complemented by {with_article(words(slots, *_ROOF))} {link} {_below(slots)}"
    elif shape or edges:
        if not text:
            text = grille
        elif phrasing.grille == "and":
            text = f"{_joined(', ', *lights)}{',' if head and tail else ''} and {grille}"
        else:
            text += f", complemented by {grille}"
    return f"It features {text}." if text else ""


def _roof(slots: Slots, phrasing: Phrasing) -> str:
    roof, below = words(slots, *_ROOF), _below(slots)
    if _runs_on(slots, phrasing):
        return ""
    if roof and below:
        return f"The {roof} roof sits above {below}."
    if roof:
        return f"The vehicle has {with_article(roof)} roof."
    return f"The vehicle has {below}." if below else ""


def _runs_on(slots: Slots, phrasing: Phrasing) -> bool:
    """Whether the roof is described in the sentence on the lights, where the grille would be."""
    lights = words(slots, "headlights_condition", "headlights_shape", "taillights_shape")
    grille = words(slots, "front_grille_shape", "front_grille_edges")
    return bool(phrasing.roof != "separate" and lights and not grille and words(slots, *_ROOF) and _below(slots))


def _below(slots: Slots) -> str:
    tires = words(slots, "tires_condition", "tire_size", "tires_type")
    return _joined(" with ", (tires, "tires"), (slots.get("bumper_condition"), "bumpers"))


def _joined(link: str, *parts: tuple[str | None, str]) -> str:
    """Join "<value> <noun>" of the nouns that have a value."""
    return link.join(f"{value} {noun}" for value, noun in parts if value)


_VEHICLE = re.compile(
    r"(?P<article>An?) (?P<what>.+?)(?: (?P<seen>viewed|seen)(?: from the (?P<view>[\w-]+(?: [\w-]+)?))?)?"
    r"(?: in (?P<light>[\w -]+?) light(?:ing)?)?(?: \(image appears (?P<target_clarity>[^()]+)\))?\."
)
_BODY = re.compile(
    r"The vehicle shows (?:(?P<exterior_condition>[^.]+?) (?:wear|condition))?(?: with |(?<=shows ))?"
    r"(?:(?P<windows>[^.]+?) windows)?\."
)
_LIGHTS = re.compile(
    r"It features (?:(?P<head>(?:(?!taillights|grille|headlights).)+?) headlights)?"
    r"(?:(?:,? and |, |(?<=features ))(?P<taillights_shape>(?:(?!grille|taillights|complemented).)+?) taillights)?"
    r"(?:(?P<join>, complemented by |,? and |, |(?<=features ))(?P<article>an? )?"
    r"(?P<front_grille_shape>[^.,]*?) ?(?:front )?grille"
    r"(?: with (?P<front_grille_edges>[^.]+?) edges)?)?\."
)
_RUN_ON = re.compile(
    r"(It features .*?(?:head|tail)lights), complemented by an? (.+) roof (sitting|sits|above)(?: above)? (.+)\."
)
_ROOFED = re.compile(
    r"The (?:(?P<roof>.*?) ?roof sits above|vehicle has) (?:(?P<tires>[^.]+?) tires)?(?: with |(?<=above )|(?<=has ))?"
    r"(?:(?P<bumper_condition>[^.]+?) bumpers)?\."
)
_ROOF_ALONE = re.compile(r"The vehicle has an? (?P<roof>[^.]+?) roof\.")
_STATE = re.compile(
    r"(?P<the>The )?(?P<thing>side mirrors are|license plate is|spoiler is|roof rack is) (?P<state>[^.]+)\.", re.I
)
_EXHAUST = re.compile(
    r"(?P<the>The )?exhaust system features (?:a )?(?P<exhaust_type>[^.]+?)(?: exhaust)? pipes?\.", re.IGNORECASE
)
_NAMES = {text.lower(): name for name, text in _STATES.items()}
_CONDITIONS = {
    "roof_condition": ("clean", "dirty", "damaged"),
    "window_condition": ("clear", "tinted", "broken", "dirty"),
    "headlights_condition": ("on", "off", "dimmed", "broken"),
    "tires_condition": ("new", "used", "worn", "damaged"),
    "tire_size": ("small", "medium", "large"),
}


def read(text: str, known: Mapping[str, tuple[str, ...]]) -> tuple[str, Reading] | None:
    """Parse one sentence into its name, values and phrasing; None if it matches no frame.

    `known` has the words of ``color`` and ``vehicle_type``, longest first.
    """
    if match := _STATE.fullmatch(text):
        name = _NAMES[match["thing"].lower()]
        field = "side_mirrors" if name == "mirrors" and match["state"].endswith("present") else SENTENCES[name][0]
        return name, ({field: match["state"]}, {"definite": "the"} if match["the"] else {})
    if match := _EXHAUST.fullmatch(text):
        return "exhaust", ({"exhaust_type": match["exhaust_type"]}, {"definite": "the"} if match["the"] else {})
    if (match := _BODY.fullmatch(text)) and (match["exterior_condition"] or match["windows"]):
        windows = _split_condition(match["windows"], "window_condition", "window_style")
        return "body", (_filled(match, "exterior_condition") | windows, {})
    if match := _RUN_ON.fullmatch(text):
        lights, roof = read(f"{match[1]}.", known), read(f"The {match[2]} roof sits above {match[4]}.", known)
        return lights and roof and ("lights", (lights[1][0] | roof[1][0], {"roof": match[3]}))
    if match := _LIGHTS.fullmatch(text):
        return _read_lights(match)
    if match := _ROOFED.fullmatch(text) or _ROOF_ALONE.fullmatch(text):
        return "roof", _read_roof(match)
    if (match := _VEHICLE.fullmatch(text)) and match["what"] and not text.startswith("The "):
        vehicle = _read_vehicle(match, known)
        # "A cat sat." has the frame of a bare brand: something must show that it is a vehicle
        sure = "vehicle_type" in vehicle[0] or len(vehicle[0]) > 1 or match["what"].endswith("vehicle")
        return ("vehicle", vehicle) if sure else None
    return None


def _read_vehicle(match: re.Match[str], known: Mapping[str, tuple[str, ...]]) -> Reading:
    what = match["what"]
    lower = what.lower()
    color = next((c for c in known["color"] if lower == c.lower() or lower.startswith(f"{c.lower()} ")), "")
    rest = what[len(color) :].strip()
    kind = next((t for t in known["vehicle_type"] if f" {rest.lower()}".endswith(f" {t.lower()}")), "")
    kind = rest[len(rest) - len(kind) :] if kind else ""
    brand = rest[: len(rest) - len(kind)].strip() if kind else rest
    brand = re.sub(r" vehicle$|^vehicle$", "", brand)
    light, _, time = (match["light"] or "").rpartition(" ")
    if time and not light and not time.endswith("time"):
        light, time = time, ""
    found = {"color": what[: len(color)], "branding": brand, "vehicle_type": kind, "illumination": light}
    values = _filled(found | match.groupdict() | {"capture_time": time}, *SENTENCES["vehicle"])
    choices = {"seen": "seen"} if match["seen"] == "seen" else {}
    if match["article"].lower() != with_article(what).split()[0]:
        choices["article"] = "a"
    return values, choices


def _read_lights(match: re.Match[str]) -> tuple[str, Reading] | None:
    fields = ("taillights_shape", "front_grille_shape", "front_grille_edges")
    if not any(match[name] for name in ("head", *fields, "join")):
        return None
    values = _split_condition(match["head"], "headlights_condition", "headlights_shape")
    values |= _filled(match, *fields)
    choices = {}
    if match["join"] and "and" in match["join"] and "complemented" not in match["join"]:
        choices["grille"] = "and"
    article = (match["article"] or "").strip()
    if article and article != with_article(match["front_grille_shape"] or "grille").split()[0]:
        choices["article"] = "a"
    return "lights", (values, choices)


def _read_roof(match: re.Match[str]) -> Reading:
    found = match.groupdict()
    values = _split_condition(found.get("roof"), "roof_condition", "roof_type")
    values |= _split_condition(found.get("tires"), "tires_condition", "tires_type")
    values |= _split_condition(values.pop("tires_type", ""), "tire_size", "tires_type")
    return values | ({"bumper_condition": bumpers} if (bumpers := found.get("bumper_condition")) else {}), {}


def _split_condition(phrase: str | None, condition: str, rest: str) -> dict[str, str]:
    """Split a phrase such as "tinted curved" into the values of two fields, each of which may be missing."""
    first, _, others = (phrase or "").partition(" ")
    found = {condition: first, rest: others} if first in _CONDITIONS[condition] else {rest: phrase or ""}
    return _filled(found, *found)


def _filled(found: re.Match[str] | Mapping[str, str | None], *names: str) -> dict[str, str]:
    return {name: value for name in names if (value := found[name])}
