"""Two simulated captioners that describe a frame with confidence, in the words of its schema."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..captioning import Answer, Answers, best_of, complement, compose
from ..captioning.distribution import answer_of
from ..data.rng import seeded_rng
from ..data.sample import MODALITIES
from .config import SyntheticConfig
from .identity import Choices, Identity, choose
from .person import MARGINALS
from .scene import MANNERS, Frame, Visit, view_of
from .vehicle import MARGINALS as VEHICLE_MARGINALS

CAPTIONERS = ("first", "second")
_ABSENT = ("no", "none", "not present", "not visible", "hidden")


@dataclass(frozen=True, slots=True)
class _Field:
    """How one field is recognised."""

    seen: tuple[float, float, float, float]  # probability in RGB by day, RGB by night, NIR, TIR; 0: no such field
    guess: Choices  # marginals of the answer otherwise
    parts: tuple[str, ...] = ()  # parts whose occlusion hides the field
    area: float = 0.0  # fraction of the object's pixels at which a thing is in full view; 0 for what always is
    night: Choices | None = None  # other marginals in RGB by night
    tir: Choices | None = None  # and in TIR


@dataclass(frozen=True, slots=True)
class Description:
    """What captioners say of persons, or of vehicles."""

    schema: str  # of captions
    fields: Mapping[str, _Field]
    merged: tuple[str, ...]  # fields that are merged over the modalities
    state: str  # the field that tells a frame's state
    blurry: tuple[str, ...] = ()  # modalities that published captions never call clear


def _flag(probability: float) -> Choices:
    return {"yes": probability, "no": 1 - probability}


_UPPER_COLOR, _LOWER_COLOR = MARGINALS["upper_clothing_color"], MARGINALS["lower_clothing_color"]
_PERSON_FIELDS: Mapping[str, _Field] = {
    "age": _Field((0.80, 0.75, 0.75, 0.75), {"adult": 0.970, "teenager": 0.015, "child": 0.015}),
    "gender": _Field(
        (0.88, 0.78, 0.74, 0.72), MARGINALS["gender"], ("skin", "hair", "upper"), tir={"male": 0.42, "female": 0.58}
    ),
    "view": _Field(
        (0.88, 0.80, 0.76, 0.64),
        {"front": 0.30, "back": 0.36, "side": 0.34},
        tir=dict.fromkeys(MANNERS["persons"].views, 1.0),
    ),
    "capture_time": _Field((0.94, 0.90, 0.85, 0.0), {"nighttime": 0.85, "daytime": 0.15}),
    "illumination": _Field((0.85, 0.92, 0.85, 0.0), {"dim": 0.80, "normal": 0.16, "bright": 0.04}),
    "upper_clothing": _Field((0.82, 0.70, 0.63, 0.60), MARGINALS["upper_clothing"], ("upper",)),
    "upper_clothing_color": _Field(
        (0.88, 0.66, 0.0, 0.0), _UPPER_COLOR, ("upper",), night={**_UPPER_COLOR, "dark": 0.6}
    ),
    "lower_clothing": _Field((0.86, 0.76, 0.70, 0.62), MARGINALS["lower_clothing"], ("lower", "skin")),
    "lower_clothing_color": _Field(
        (0.84, 0.62, 0.0, 0.0), _LOWER_COLOR, ("lower",), night={**_LOWER_COLOR, "dark": 0.6}
    ),
    "hair_length": _Field((0.78, 0.66, 0.66, 0.64), MARGINALS["hair_length"], ("hair",)),
    "hair_style": _Field((0.40, 0.25, 0.20, 0.10), MARGINALS["hair_style"], ("hair",)),
    "footwear": _Field((0.55, 0.38, 0.35, 0.32), MARGINALS["footwear"], ("footwear",)),
    "footwear_style": _Field((0.50, 0.35, 0.30, 0.28), {"casual": 0.87, "athletic": 0.13}, ("footwear",)),
    "glasses": _Field((0.75, 0.55, 0.45, 0.50), _flag(0.22), ("glasses",), 0.004),
    "handbag": _Field((0.75, 0.55, 0.55, 0.60), _flag(0.12), ("handbag",), 0.015),
    "backpack": _Field((0.90, 0.75, 0.75, 0.82), _flag(0.33), ("backpack",), 0.03),
    "suitcase": _Field((0.90, 0.78, 0.80, 0.85), _flag(0.03), ("suitcase",), 0.02),
    "holding": _Field((0.75, 0.55, 0.55, 0.60), MARGINALS["holding"], ("held",), 0.004),
    "target_clarity": _Field((1.0, 1.0, 1.0, 1.0), {"blurry": 1.0}),
}


def _vehicle(name: str, seen: tuple[float, float, float, float], *parts: str, area: float = 0.0) -> _Field:
    return _Field(seen, VEHICLE_MARGINALS[name], parts, area)


_VEHICLE_FIELDS: Mapping[str, _Field] = {
    "vehicle_type": _vehicle("vehicle_type", (0.98, 0.97, 0.97, 0.95)),
    "branding": _vehicle(
        "branding", (0.90, 0.82, 0.86, 0.82), "badge", "grille", "headlights", "taillights", area=0.02
    ),
    "color": _Field(
        (0.97, 0.92, 0.0, 0.0),
        VEHICLE_MARGINALS["color"],
        ("body",),
        night={**VEHICLE_MARGINALS["color"], "black": 0.6},
    ),
    "view": _Field((0.86, 0.80, 0.80, 0.80), MANNERS["vehicles"].views),
    "capture_time": _Field((0.98, 0.97, 0.97, 0.0), {"nighttime": 0.6, "daytime": 0.4}),
    "illumination": _Field((0.80, 0.88, 0.80, 0.0), {"dim": 0.59, "normal": 0.33, "bright": 0.08}),
    "target_clarity": _Field((0.75, 0.75, 0.70, 0.55), {"clear": 0.8, "blurry": 0.2}),
    "exterior_condition": _vehicle("exterior_condition", (0.70, 0.62, 0.62, 0.52), "body"),
    "window_condition": _vehicle("window_condition", (0.58, 0.48, 0.52, 0.42), "windows"),
    "window_style": _vehicle("window_style", (0.50, 0.42, 0.45, 0.42), "windows"),
    "headlights_condition": _Field((0.80, 0.85, 0.75, 0.45), {"off": 0.85, "on": 0.15}, ("headlights",), 0.004),
    "headlights_shape": _vehicle("headlights_shape", (0.60, 0.50, 0.52, 0.40), "headlights", area=0.008),
    "taillights_shape": _vehicle("taillights_shape", (0.58, 0.48, 0.46, 0.34), "taillights", area=0.006),
    "front_grille_shape": _vehicle("front_grille_shape", (0.74, 0.66, 0.70, 0.62), "grille", area=0.015),
    "front_grille_edges": _vehicle("front_grille_edges", (0.42, 0.32, 0.34, 0.28), "grille", area=0.015),
    "roof_type": _vehicle("roof_type", (0.55, 0.48, 0.50, 0.46), "roof"),
    "roof_condition": _vehicle("roof_condition", (0.50, 0.40, 0.40, 0.30), "roof"),
    "tires_type": _vehicle("tires_type", (0.42, 0.34, 0.36, 0.30), "wheels"),
    "tires_condition": _vehicle("tires_condition", (0.52, 0.44, 0.46, 0.40), "wheels"),
    "tire_size": _vehicle("tire_size", (0.70, 0.60, 0.62, 0.60), "wheels"),
    "bumper_condition": _vehicle("bumper_condition", (0.80, 0.70, 0.70, 0.60), "bumpers"),
    "license_plate": _Field((0.96, 0.93, 0.97, 0.90), {"visible": 0.88, "not visible": 0.12}, ("plate",), 0.004),
    "spoiler": _vehicle("spoiler", (0.85, 0.75, 0.75, 0.70), "spoiler", area=0.008),
    "roof_rack": _vehicle("roof_rack", (0.93, 0.85, 0.86, 0.84), "roof rack", area=0.006),
    "side_mirror_condition": _vehicle("side_mirror_condition", (0.85, 0.75, 0.75, 0.70), "mirrors"),
    "exhaust_type": _vehicle("exhaust_type", (0.50, 0.38, 0.42, 0.60), "exhaust", area=0.002),
}
DESCRIPTIONS: Mapping[str, Description] = {
    "persons": Description(
        "person",
        _PERSON_FIELDS,
        ("glasses", "handbag", "backpack", "suitcase", "holding"),  # where published captions agree
        "holding",
        blurry=("rgb", "nir"),
    ),
    "vehicles": Description(
        "vehicle", _VEHICLE_FIELDS, ("license_plate", "spoiler", "roof_rack"), "headlights_condition"
    ),
}
"""Chances that give the agreement of the published captions of RGBNT201 and of MSVR310, by kind."""
_SHARPNESS = 12.0  # concentration of an image's legibility about the probability above


def true_answers(config: SyntheticConfig, identity: Identity[Any], visit: Visit, frame: Frame) -> dict[str, str]:
    """Return what a perfect captioner would answer."""
    view = view_of(config.kind, frame.yaw)
    answers = dict(identity.attributes) | {
        "view": view,
        "capture_time": "nighttime" if visit.night else "daytime",
        "illumination": frame.illumination,
        DESCRIPTIONS[config.kind].state: frame.state,
        "target_clarity": "clear" if frame.defocus < 0.45 else "blurry",
    }
    if config.kind == "vehicles":
        answers["license_plate"] = "not visible" if view == "side" else "visible"
    return answers


def ask_captioners(
    config: SyntheticConfig,
    identity: Identity[Any],
    visit: Visit,
    frame: Frame,
    key: tuple[int, int, int],
    visible: Mapping[str, int],
    hidden: Mapping[str, int],
) -> dict[str, Mapping[str, Answers]]:
    """Let two captioners describe one frame; return their answers by modality and captioner.

    A captioner sees the true value with a probability that depends on the field, the modality, the light, blur, and
    the pixels of each part that are `visible` and `hidden` by an occluder; else it guesses from the marginals. Its
    confidence is that probability, not whether it was right. A value of ``""`` means that there is no such thing, as
    the lower garment of somebody in a dress.
    """
    rng = seeded_rng(config.kind, config.seed, "captioner", *key)
    described = DESCRIPTIONS[config.kind]
    truth = true_answers(config, identity, visit, frame)
    seen = np.array([field.seen for field in described.fields.values()]).T[[int(visit.night), 2, 3]]
    glare = np.array([[1.0 if frame.flare is None or modality == "tir" else 0.85] for modality in MODALITIES])
    chances = np.clip(seen * _clarity(config, truth, frame, visible, hidden) * glare, 0.0, 0.98)
    spread = np.maximum(_SHARPNESS * np.stack((chances, 1 - chances)), 0.1)
    legible = rng.beta(spread[0], spread[1]) * (chances > 0)
    sees = rng.random((2, *chances.shape)) < legible
    confidence = np.clip(legible + rng.normal(0, 0.08, (2, *chances.shape)), 0.0, 1.0)
    by_modality: dict[str, Mapping[str, Answers]] = {}
    for m, modality in enumerate(MODALITIES):
        answers: dict[str, dict[str, Answer]] = {captioner: {} for captioner in CAPTIONERS}
        for f, (name, field) in enumerate(described.fields.items()):
            # one number per field, so that no answer depends on how another one came about
            other = field.tir if modality == "tir" else field.night if modality == "rgb" and visit.night else None
            guess = choose(rng, other or field.guess)
            if seen[m, f] > 0:
                for k, captioner in enumerate(CAPTIONERS):
                    value = truth[name] if sees[k, m, f] else guess
                    answers[captioner][name] = Answer(value, float(confidence[k, m, f]))
        if modality in described.blurry:
            for fields in answers.values():
                fields["target_clarity"] = Answer("blurry", 0.9)
        by_modality[modality] = answers
    return by_modality


def with_probabilities(config: SyntheticConfig, answers: Answers, temperature: float = 1.0) -> Answers:
    """Return a captioner's answers as one would give them that reports a probability for every value.

    It saw ``x``, knows how legible the image is (its confidence c) and how frequent the values are (p): by Bayes' rule
    the truth is x with probability ``c + (1 - c) p(x)``, and another value v with ``(1 - c) p(v)``.

    Args:
        config: Says whether the answers are about persons or vehicles.
        answers: As `ask_captioners` gives them.
        temperature: Its logarithms are divided by it; below 1: it is too sure of itself.
    """
    fields = DESCRIPTIONS[config.kind].fields
    known = {name: answer for name, answer in answers.items() if answer.value}
    return {name: answer_of(_posterior(fields[name].guess, answer, temperature)) for name, answer in known.items()}


def merge_answers(config: SyntheticConfig, answers: Mapping[str, Mapping[str, Answers]]) -> dict[str, Answers]:
    """Keep the more confident captioner's answers; then, if configured, modalities complement each other."""
    described = DESCRIPTIONS[config.kind]
    best = {modality: best_of(by_captioner) for modality, by_captioner in answers.items()}
    fields = described.merged if config.caption_merge else ()
    merged = complement(best, described.schema, fields=fields, absence="counts")
    return {modality: result.answers for modality, result in merged.items()}


def confident(answers: Answers, floor: float) -> dict[str, str]:
    """Drop answers whose confidence is 0 or lies below `floor`, and the confidences."""
    return {
        name: answer.value
        for name, answer in answers.items()
        if answer.value is not None and answer.confidence and answer.confidence >= floor
    }


def _posterior(guess: Choices, answer: Answer, temperature: float) -> dict[str, float]:
    seen, total = answer.weight, sum(guess.values())
    chances = {value: (1 - seen) * share / total for value, share in guess.items()}
    chances[str(answer.value)] = chances.get(str(answer.value), 0.0) + seen
    sharp = {value: chance ** (1 / temperature) for value, chance in chances.items()}
    return {value: chance / sum(sharp.values()) for value, chance in sharp.items()}


def _clarity(
    config: SyntheticConfig,
    truth: Mapping[str, str],
    frame: Frame,
    visible: Mapping[str, int],
    hidden: Mapping[str, int],
) -> np.ndarray:
    """Factors ``(fields,)`` on the probability that a field is seen: blur, noise, and what of it is in sight."""
    fields = DESCRIPTIONS[config.kind].fields
    whole = max(1, sum(count for part, count in visible.items() if part not in ("background", "occluder")))
    clear = max(0.3, 1 - 0.08 * (frame.defocus + frame.motion)) * (1 - config.caption_noise)
    factors = np.full(len(fields), clear)
    for f, (name, field) in enumerate(fields.items()):
        shown = sum(visible.get(part, 0) for part in field.parts)
        covered = sum(hidden.get(part, 0) for part in field.parts)
        if field.area and truth[name] not in _ABSENT:
            factors[f] *= min(1.0, (shown / whole / field.area) ** 0.5)
        elif field.area:
            factors[f] *= 0.9
        elif field.parts and shown + covered:
            factors[f] *= (shown / (shown + covered)) ** 0.5
    return factors


def write_captions(
    config: SyntheticConfig, truth: Mapping[str, str], answers: Mapping[str, Answers]
) -> tuple[tuple[str, ...], ...]:
    """Write the sentences of each modality from the truth or from the merged answers, as the caption source asks."""
    described = DESCRIPTIONS[config.kind]
    if config.caption_source == "empty":
        return ()
    if config.caption_source == "exact":
        values = {modality: dict(truth) for modality in MODALITIES}
    elif config.caption_source == "constant":
        commonest = {name: max(field.guess, key=field.guess.__getitem__) for name, field in described.fields.items()}
        values = {modality: commonest for modality in MODALITIES}
    else:
        values = {modality: confident(answers[modality], config.caption_floor) for modality in MODALITIES}
    return tuple(compose(values[modality], described.schema, modality) for modality in MODALITIES)


def compose_person(answers: Mapping[str, str], modality: str) -> tuple[str, ...]:
    """Write the caption of one image as up to five sentences, by `nextreid.captioning.compose`.

    Colours are named in RGB only; TIR has neither time nor light. Empty or unknown answers leave their slot out,
    and a sentence whose slots are all empty is left out.

    Args:
        answers: Value by field of the person schema, such as ``{"gender": "male", "view": "side"}``.
        modality: ``"rgb"``, ``"nir"`` or ``"tir"``.

    Returns:
        The sentences in order; joined by a space they are the caption.

    Raises:
        ValueError: If it is another modality.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality must be 'rgb', 'nir' or 'tir', got {modality!r}")
    return compose(answers, "person", modality)
