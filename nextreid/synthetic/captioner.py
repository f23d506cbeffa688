"""Two simulated captioners that describe a frame with confidence, in the words of the person schema."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..captioning import Answer, Answers, best_of, complement, compose
from ..captioning.distribution import answer_of
from ..data.rng import seeded_rng
from ..data.sample import MODALITIES
from .config import PersonsConfig
from .identity import MARGINALS, Choices, Identity, choose
from .scene import VIEWS, Frame, Visit

CAPTIONERS = ("first", "second")
MERGED = ("glasses", "handbag", "backpack", "suitcase", "holding")
"""Fields that are merged over the modalities; the published captions agree there and nowhere else."""


@dataclass(frozen=True, slots=True)
class _Field:
    """How one field is recognised."""

    seen: tuple[float, float, float, float]  # probability in RGB by day, RGB by night, NIR, TIR; 0: no such field
    guess: Choices  # marginals of the answer otherwise
    parts: tuple[str, ...] = ()  # parts whose occlusion hides the field
    area: float = 0.0  # fraction of the person's pixels at which an object is in full view; 0 for what everybody has


def _flag(probability: float) -> Choices:
    return {"yes": probability, "no": 1 - probability}


FIELDS: Mapping[str, _Field] = {
    "age": _Field((0.80, 0.75, 0.75, 0.75), {"adult": 0.970, "teenager": 0.015, "child": 0.015}),
    "gender": _Field((0.88, 0.78, 0.74, 0.72), MARGINALS["gender"], ("skin", "hair", "upper")),
    "view": _Field((0.88, 0.80, 0.76, 0.64), {"front": 0.30, "back": 0.36, "side": 0.34}),
    "capture_time": _Field((0.94, 0.90, 0.85, 0.0), {"nighttime": 0.85, "daytime": 0.15}),
    "illumination": _Field((0.85, 0.92, 0.85, 0.0), {"dim": 0.80, "normal": 0.16, "bright": 0.04}),
    "upper_clothing": _Field((0.82, 0.70, 0.63, 0.60), MARGINALS["upper_clothing"], ("upper",)),
    "upper_clothing_color": _Field((0.88, 0.66, 0.0, 0.0), MARGINALS["upper_clothing_color"], ("upper",)),
    "lower_clothing": _Field((0.86, 0.76, 0.70, 0.62), MARGINALS["lower_clothing"], ("lower", "skin")),
    "lower_clothing_color": _Field((0.84, 0.62, 0.0, 0.0), MARGINALS["lower_clothing_color"], ("lower",)),
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
_TIR_GENDERS: Choices = {"male": 0.42, "female": 0.58}
_SHARPNESS = 12.0  # concentration of an image's legibility about the probability above


def true_answers(identity: Identity, visit: Visit, frame: Frame) -> dict[str, str]:
    """Return what a perfect captioner would answer."""
    return dict(identity.attributes) | {
        "view": frame.view,
        "capture_time": "nighttime" if visit.night else "daytime",
        "illumination": frame.illumination,
        "holding": frame.held,
        "target_clarity": "clear" if frame.defocus < 0.45 else "blurry",
    }


def ask_captioners(
    config: PersonsConfig,
    identity: Identity,
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
    rng = seeded_rng("persons", config.seed, "captioner", *key)
    truth = true_answers(identity, visit, frame)
    seen = np.array([field.seen for field in FIELDS.values()]).T[[int(visit.night), 2, 3]]
    glare = np.array([[1.0 if frame.flare is None or modality == "tir" else 0.85] for modality in MODALITIES])
    chances = np.clip(seen * _clarity(config, truth, frame, visible, hidden) * glare, 0.0, 0.98)
    spread = np.maximum(_SHARPNESS * np.stack((chances, 1 - chances)), 0.1)
    legible = rng.beta(spread[0], spread[1]) * (chances > 0)
    sees = rng.random((2, *chances.shape)) < legible
    confidence = np.clip(legible + rng.normal(0, 0.08, (2, *chances.shape)), 0.0, 1.0)
    by_modality: dict[str, Mapping[str, Answers]] = {}
    for m, modality in enumerate(MODALITIES):
        answers: dict[str, dict[str, Answer]] = {captioner: {} for captioner in CAPTIONERS}
        for f, (name, field) in enumerate(FIELDS.items()):
            # one number per field, so that no answer depends on how another one came about
            guess = _guess(rng, name, field.guess, modality, visit.night)
            if seen[m, f] > 0:
                for k, captioner in enumerate(CAPTIONERS):
                    value = truth[name] if sees[k, m, f] else guess
                    answers[captioner][name] = Answer(value, float(confidence[k, m, f]))
        if modality != "tir":  # published captions call hardly any image but a thermal one clear
            for fields in answers.values():
                fields["target_clarity"] = Answer("blurry", 0.9)
        by_modality[modality] = answers
    return by_modality


def with_probabilities(answers: Answers, temperature: float = 1.0) -> Answers:
    """Return a captioner's answers as one would give them that reports a probability for every value.

    It saw ``x``, knows how legible the image is (its confidence c) and how frequent the values are (p): by Bayes' rule
    the truth is x with probability ``c + (1 - c) p(x)``, and another value v with ``(1 - c) p(v)``.

    Args:
        answers: As `ask_captioners` gives them.
        temperature: Its logarithms are divided by it; below 1: it is too sure of itself.
    """
    return {name: answer_of(_posterior(name, answer, temperature)) for name, answer in answers.items() if answer.value}


def merge_answers(answers: Mapping[str, Mapping[str, Answers]], over_modalities: bool) -> dict[str, Answers]:
    """Keep the more confident captioner's answers; then, if requested, modalities complement each other in `MERGED`."""
    best = {modality: best_of(by_captioner) for modality, by_captioner in answers.items()}
    merged = complement(best, "person", fields=MERGED if over_modalities else (), absence="counts")
    return {modality: result.answers for modality, result in merged.items()}


def confident(answers: Answers, floor: float) -> dict[str, str]:
    """Drop answers whose confidence is 0 or lies below `floor`, and the confidences."""
    return {
        name: answer.value
        for name, answer in answers.items()
        if answer.value is not None and answer.confidence and answer.confidence >= floor
    }


def _posterior(name: str, answer: Answer, temperature: float) -> dict[str, float]:
    guess, seen = FIELDS[name].guess, answer.weight
    total = sum(guess.values())
    chances = {value: (1 - seen) * share / total for value, share in guess.items()}
    chances[str(answer.value)] = chances.get(str(answer.value), 0.0) + seen
    sharp = {value: chance ** (1 / temperature) for value, chance in chances.items()}
    return {value: chance / sum(sharp.values()) for value, chance in sharp.items()}


def _clarity(
    config: PersonsConfig, truth: Mapping[str, str], frame: Frame, visible: Mapping[str, int], hidden: Mapping[str, int]
) -> np.ndarray:
    """Factors ``(fields,)`` on the probability that a field is seen: blur, noise, and what of it is in sight."""
    person = max(1, sum(count for part, count in visible.items() if part not in ("background", "occluder")))
    clear = max(0.3, 1 - 0.08 * (frame.defocus + frame.motion)) * (1 - config.caption_noise)
    factors = np.full(len(FIELDS), clear)
    for f, (name, field) in enumerate(FIELDS.items()):
        shown = sum(visible.get(part, 0) for part in field.parts)
        covered = sum(hidden.get(part, 0) for part in field.parts)
        if field.area and truth[name] not in ("no", "none"):
            factors[f] *= min(1.0, (shown / person / field.area) ** 0.5)
        elif field.area:
            factors[f] *= 0.9
        elif field.parts and shown + covered:
            factors[f] *= (shown / (shown + covered)) ** 0.5
    return factors


def _guess(rng: np.random.Generator, name: str, guess: Choices, modality: str, night: bool) -> str:
    if name == "gender" and modality == "tir":
        guess = _TIR_GENDERS
    if name == "view" and modality == "tir":
        guess = dict.fromkeys(VIEWS, 1.0)
    if modality == "rgb" and night and name.endswith("_color"):
        guess = dict(guess) | {"dark": 0.6}
    return choose(rng, guess)


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
