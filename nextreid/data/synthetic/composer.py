"""Answers to caption: the fixed sentence grammar of the published person captions, without their slips."""

import re
from collections.abc import Mapping

_UNKNOWN = re.compile(
    r"\b(?:none visible|unknown|unknowable|unclear|undetermined|undeterminable|unidentifiable|unspecified|"
    r"uncertain|unsure|indeterminate|undefined|n/?a|not (?:visible|specified|sure|clear))\b",
    re.IGNORECASE,
)
_PAIRS = ("trousers", "jeans", "shorts", "pants", "leggings")
_ACTIONS = {"phone": "a phone", "bottle": "a bottle", "umbrella": "an umbrella", "book": "a book"}


def compose_person(answers: Mapping[str, str], modality: str) -> tuple[str, ...]:
    """Write the caption of one picture as up to five sentences.

    Colours are named in RGB only; TIR has neither time nor light. Empty or unknown answers leave their slot out,
    and a sentence whose slots are all empty is left out.

    Args:
        answers: Attribute name to value. Names: age, gender, view, capture_time, illumination, upper_clothing,
            upper_clothing_color, lower_clothing, lower_clothing_color, footwear, footwear_style, hair_length,
            hair_style, glasses, handbag, backpack, suitcase (``"yes"`` or ``"no"``), holding, target_clarity.
        modality: ``"rgb"``, ``"nir"`` or ``"tir"``.

    Returns:
        The sentences in order; joined by a space they are the caption.

    Raises:
        ValueError: If the modality has no grammar.
    """
    if modality not in ("rgb", "nir", "tir"):
        raise ValueError(f"modality must be 'rgb', 'nir' or 'tir', got {modality!r}")
    slots = {name: _clean(value) for name, value in answers.items()}
    if modality != "rgb":
        slots |= {"upper_clothing_color": "", "lower_clothing_color": ""}
    if modality == "tir":
        slots |= {"capture_time": "", "illumination": ""}
    he = {"male": "he", "female": "she"}.get(slots.get("gender", ""), "the person")
    sentences = (_who(slots), _clothes(slots, he), _head(slots, he), _action(slots, he), _clarity(slots))
    return tuple(sentence for sentence in sentences if sentence)


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase, by its first letter.

    Args:
        phrase: Such as ``"adult male"``.

    Returns:
        Such as ``"an adult male"``.
    """
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"


def _clean(value: str) -> str:
    value = re.sub(r"\(.*?\)|\[.*?\]", "", value).split("|")[0]
    value = " ".join(value.split())
    return "" if _UNKNOWN.search(value) else value


def _words(slots: Mapping[str, str], *names: str) -> str:
    return " ".join(slots[name] for name in names if slots.get(name))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _who(slots: Mapping[str, str]) -> str:
    who, view = _words(slots, "age", "gender"), slots.get("view")
    time, light = slots.get("capture_time"), slots.get("illumination")
    if not (who or view or time or light):
        return ""
    text = with_article(who or "person")
    text += f" seen from the {view}" if view else " seen" if time or light else ""
    text += f" during {time}" if time else ""
    text += f" in {light} lighting" if light else ""
    return _sentence(text)


def _clothes(slots: Mapping[str, str], he: str) -> str:
    upper = _words(slots, "upper_clothing_color", "upper_clothing") if slots.get("upper_clothing") else ""
    garment = slots.get("lower_clothing", "")
    lower = _words(slots, "lower_clothing_color", "lower_clothing") if garment else ""
    if lower and not garment.endswith(_PAIRS):
        lower = with_article(lower)
    shoes = _words(slots, "footwear_style", "footwear") if slots.get("footwear") else ""
    worn = " with ".join(part for part in (with_article(upper) if upper else "", lower) if part)
    if worn and shoes:
        worn += f", paired with {shoes}"
    return _sentence(f"{he} is wearing {worn or shoes}") if worn or shoes else ""


def _head(slots: Mapping[str, str], he: str) -> str:
    length = slots.get("hair_length")
    hair = f"{_words(slots, 'hair_length', 'hair_style')} hair" if length else ""
    glasses = {"yes": f"{he} is wearing glasses", "no": f"{he} is not wearing glasses"}.get(
        slots.get("glasses", ""), ""
    )
    return _sentence(" and ".join(part for part in (hair, glasses) if part))


def _action(slots: Mapping[str, str], he: str) -> str:
    bags = [bag for bag in ("handbag", "backpack", "suitcase") if slots.get(bag)]
    actions = [f"carrying {with_article(bag)}" for bag in ("backpack", "handbag") if slots.get(bag) == "yes"][:1]
    held = slots.get("holding", "")
    if held and held != "none":
        actions.append(f"holding {_ACTIONS.get(held) or with_article(held)}")
    if slots.get("suitcase") == "yes":
        actions.append("dragging a suitcase")
    if actions:
        return _sentence(f"{he} is {' and '.join(actions[:2])}")
    if held == "none" and len(bags) == 3:
        return _sentence(f"{he} is not carrying anything")
    if not bags:
        return ""
    named = [with_article(bags[0]), *bags[1:]]
    listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])}{',' if len(named) > 2 else ''} or {named[-1]}"
    return _sentence(f"{he} is not carrying {listed}")


def _clarity(slots: Mapping[str, str]) -> str:
    clarity = slots.get("target_clarity")
    return f"The image appears {clarity}." if clarity else ""
