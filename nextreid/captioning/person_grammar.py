"""The five sentences of a person's caption: how they are written, and how published ones are parsed."""

import re
from collections.abc import Mapping

from .phrasing import Phrasing
from .text import counted, plain_value, sentence, with_article, words

Slots = Mapping[str, str]
Reading = tuple[dict[str, str], dict[str, str]]
"""Values by field, and the choices of `Phrasing` that the sentence shows."""

_BAGS = ("handbag", "backpack", "suitcase")
_FIELDS = {
    "who": "age gender view capture_time illumination",
    "clothes": "upper_clothing upper_clothing_color lower_clothing lower_clothing_color footwear footwear_style",
    "head": "hair_length hair_style glasses",
    "action": "carrying holding handbag backpack suitcase",
    "clarity": "target_clarity",
}
SENTENCES = {name: tuple(fields.split()) for name, fields in _FIELDS.items()}
"""Sentences in their order, with the fields that they state."""
LEANING = {
    "upper_clothing_color": "upper_clothing",
    "lower_clothing_color": "lower_clothing",
    "footwear_style": "footwear",
    "hair_style": "hair_length",
}
"""Fields that are stated only beside another one."""
SPLIT_WORDS = ("upper_clothing", "lower_clothing", "footwear")
"""Fields whose known words tell where one slot ends and the next begins."""


def write(name: str, slots: Slots, phrasing: Phrasing) -> str:
    """Write one sentence of `SENTENCES` from clean values by field; ``""`` if it has none."""
    he = {"male": "he", "female": "she"}.get(slots.get("gender", ""), "the person")
    if name == "clarity":
        clarity = slots.get("target_clarity")
        return f"The image {phrasing.clarity} {clarity}." if clarity else ""
    return _WRITERS[name](slots, he, phrasing)


def _who(slots: Slots, he: str, phrasing: Phrasing) -> str:
    who, view = words(slots, "age", "gender"), slots.get("view")
    time, light = slots.get("capture_time"), slots.get("illumination")
    if not (who or view or time or light):
        return ""
    if slots.get("gender", "").lower() == "non-binary" or not who:
        who = f"{who} person".strip()
    text = f"a {who}" if phrasing.article == "a" else with_article(who)
    text += f" seen from the {view}" if view else " seen" if time or light else ""
    text += f" during {time}" if time else ""
    text += f" in {light} lighting" if light else ""
    return sentence(text)


def _clothes(slots: Slots, he: str, phrasing: Phrasing) -> str:
    # a colour whose garment is unknown has nothing to stand beside, nor has the style of unknown footwear
    upper = words(slots, "upper_clothing_color", "upper_clothing") if slots.get("upper_clothing") else ""
    lower = words(slots, "lower_clothing_color", "lower_clothing") if slots.get("lower_clothing") else ""
    if slots.get("upper_clothing") == slots.get("lower_clothing") == "dress" and phrasing.values == "clean":
        lower = ""  # one garment, named once
    shoes = slots.get("footwear", "")
    if shoes and shoes != "barefoot":
        shoes = words(slots, "footwear_style", "footwear")
    lower = lower if phrasing.garment == "bare" else counted(lower)
    worn = " with ".join(part for part in (counted(upper), lower) if part)
    if worn and shoes:
        worn += ", barefoot" if shoes == "barefoot" else f", paired with {shoes}"
    if shoes == "barefoot" and not worn:
        return sentence(f"{he} is barefoot")
    return sentence(f"{he} is wearing {worn or shoes}") if worn or shoes else ""


def _head(slots: Slots, he: str, phrasing: Phrasing) -> str:
    hair = f"{words(slots, 'hair_length', 'hair_style')} hair" if slots.get("hair_length") else ""
    wears = {"yes": "wearing glasses", "no": "not wearing glasses"}.get(slots.get("glasses", ""), "")
    clause = f"{he} is {wears}" if wears and not (hair and phrasing.glasses == "short") else wears
    return sentence(" and ".join(part for part in (hair, clause) if part))


def _action(slots: Slots, he: str, phrasing: Phrasing) -> str:
    bare = phrasing.action.endswith("bare")
    carried, held = slots.get("carrying", ""), slots.get("holding", "")
    if carried in ("", "none"):
        carried = next((bag for bag in ("backpack", "handbag") if slots.get(bag) == "yes"), carried)
    actions = []
    if carried not in ("", "none", "suitcase"):
        actions.append(f"carrying {carried if bare else counted(carried)}")
    if held not in ("", "none"):
        actions.append(f"holding {counted(held)}")
    if slots.get("suitcase") == "yes" or carried == "suitcase":
        actions.append("dragging a suitcase")
    if actions:
        shown = actions[:2]
        return sentence(f"{he} is {' and '.join(shown[::-1] if phrasing.action.startswith('reversed') else shown)}")
    return _nothing(slots, he, phrasing)


def _nothing(slots: Slots, he: str, phrasing: Phrasing) -> str:
    bags = [bag for bag in _BAGS if slots.get(bag)]
    if phrasing.nothing == "a none":
        return sentence(f"{he} is carrying a none")
    if phrasing.nothing == "hands" and slots.get("holding"):
        return sentence(f"{he} is not holding anything")
    if phrasing.nothing == "each" and len(bags) == len(_BAGS):
        return sentence(f"{he} is not carrying a handbag, not carrying a backpack, and not dragging a suitcase")
    if slots.get("carrying") == "none" or (slots.get("holding") == "none" and len(bags) == len(_BAGS)):
        said = {"nothing": "carrying nothing", "none": "carrying none"}
        return sentence(f"{he} is {said.get(phrasing.nothing, 'not carrying anything')}")
    if not bags:
        return ""
    named = [bags[0] if phrasing.action == "bare" else with_article(bags[0]), *bags[1:]]
    listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])}{',' if len(named) > 2 else ''} or {named[-1]}"
    return sentence(f"{he} is not carrying {listed}")


_WRITERS = {"who": _who, "clothes": _clothes, "head": _head, "action": _action}

_HE = r"(?P<he>He|She|They|The person)"
_WHO = re.compile(
    r"(?P<article>An?) (?P<who>[\w-]+(?: [\w-]+){0,2}?)(?: seen(?: from the (?P<view>[\w-]+))?)?"
    r"(?: during (?P<capture_time>[\w-]+))?(?: in (?P<illumination>[\w-]+) lighting)?\."
)
_CLOTHES = re.compile(
    rf"{_HE} is (?:wearing (?P<worn>(?:(?!, paired with).)+?)(?:, paired with (?P<shoes>.+?))?(?P<bare>, barefoot)?"
    r"|(?P<barefoot>barefoot))\."
)
_LENGTH = r"(?:short|medium|long)"
_HEAD = re.compile(
    rf"(?:(?P<hair_length>{_LENGTH}(?: \| {_LENGTH})*)(?: (?P<hair_style>[^.,]+?))? hair)?"
    rf"(?:(?:^|,? and |, ){_HE}?(?P<clause> ?is )?(?P<without>not )?wearing glasses)?"
    r"(?:(?:,? and |, )(?:(?:he|she|the person) is )?(?P<actions>(?:not )?(?:carrying|holding|dragging)\b.*))?\.",
    re.IGNORECASE,
)
_ACTION = re.compile(rf"{_HE} is (?P<actions>(?:not )?(?:carrying|holding|dragging|pulling)\b.*)\.")
_CLARITY = re.compile(r"The image (?P<verb>appears|is) (?P<target_clarity>.+)\.")
_SPLIT = re.compile(r"(?:,? (?:and|or|but) |, )(?=(?:not )?(?:carrying|holding|dragging|pulling)\b)")
_VERB = re.compile(r"(not )?(carrying|holding|dragging|pulling) ?(.*)")
_EMPTY = {"none", "a none", "nothing", "anything", "any", "not", "any items", "anything visible"}


def read(text: str, garments: Mapping[str, tuple[str, ...]]) -> tuple[str, Reading] | None:
    """Parse one sentence into its name, values and phrasing; None if it matches no frame.

    `garments` has the known words of ``upper_clothing``, ``lower_clothing`` and ``footwear``, longest first, and the
    single words of ``colors`` and ``styles`` of footwear.
    """
    if match := _WHO.fullmatch(text):
        return _read_who(match)
    if match := _CLARITY.fullmatch(text):
        return "clarity", ({"target_clarity": match["target_clarity"]}, {"clarity": match["verb"]})
    if (match := _HEAD.fullmatch(text)) and (match["hair_length"] or match["clause"]):
        head = _read_head(match)
        return head and ("head", head)
    if match := _ACTION.fullmatch(text):
        actions = _read_actions(match["actions"])
        return actions and ("action", actions)
    if match := _CLOTHES.fullmatch(text):
        return "clothes", _read_clothes(match, garments)
    return None


def _read_who(match: re.Match[str]) -> tuple[str, Reading] | None:
    values = {name: match[name] for name in ("view", "capture_time", "illumination") if match[name]}
    for word in match["who"].removesuffix("person").split():
        name = "gender" if word in ("male", "female", "non-binary", "man", "woman") else "age"
        if name in values or (name == "age" and word not in ("child", "teenager", "adult", "senior")):
            return None
        values[name] = word
    right = with_article(match["who"]).split()[0]
    return "who", (values, {} if match["article"].lower() == right else {"article": "a"})


def _read_clothes(match: re.Match[str], garments: Mapping[str, tuple[str, ...]]) -> Reading:
    values: dict[str, str] = {}
    choices: dict[str, str] = {}
    worn, shoes = match["worn"] or "", match["shoes"] or ""
    if match["barefoot"] or match["bare"]:
        values["footwear"] = "barefoot"
    if not shoes and worn.endswith(garments["footwear"]) and " with " not in worn:
        worn, shoes = "", worn
    upper, _, lower = worn.partition(" with ")
    if not lower and not upper.endswith(garments["upper_clothing"]) and upper.endswith(garments["lower_clothing"]):
        upper, lower = "", upper
    for part, name in ((upper, "upper_clothing"), (lower, "lower_clothing"), (shoes, "footwear")):
        bare = re.sub(r"^an? ", "", part, flags=re.IGNORECASE)
        first, noun = _split_noun(bare, garments[name])
        style, _, rest = noun.partition(" ")
        if name == "footwear" and not first and style in garments["styles"] and rest:
            first, noun = style, rest
        elif first and name != "footwear" and not _names_color(first, garments["colors"]):
            first, noun = "", bare
        values |= {name: noun} if noun else {}
        values |= {"footwear_style" if name == "footwear" else f"{name}_color": first} if first else {}
        if name == "lower_clothing" and part and counted(bare) != part:
            choices["garment"] = "bare"
    return values, choices


def _split_noun(phrase: str, nouns: tuple[str, ...]) -> tuple[str, str]:
    for noun in nouns:
        if phrase == noun or phrase.endswith(f" {noun}"):
            return phrase[: -len(noun)].strip(), noun
    return "", phrase


def _names_color(phrase: str, colors: tuple[str, ...]) -> bool:
    return phrase.startswith("(") or not plain_value(phrase) or any(w in colors for w in re.split(r"[\s(),-]+", phrase))


def _read_head(match: re.Match[str]) -> Reading | None:
    values = {name: match[name].lower() for name in ("hair_length", "hair_style") if match[name]}
    choices: dict[str, str] = {}
    if "wearing glasses" in match[0].lower():
        values["glasses"] = "no" if match["without"] else "yes"
        choices["glasses"] = "clause" if match["clause"] else "short"
    if not match["actions"]:
        return values, choices
    actions = _read_actions(match["actions"])  # an action that ran into this sentence
    return actions and (values | actions[0], choices | actions[1])


def _read_actions(actions: str) -> Reading | None:
    values: dict[str, str] = {}
    choices: dict[str, str] = {}
    matches = [_VERB.fullmatch(part) for part in _SPLIT.split(actions)]
    for match in matches:
        if not match:
            return None
        verb, thing = match[2], re.sub(r"^an? ", "", match[3])
        if verb in ("dragging", "pulling"):
            values["suitcase"] = "no" if match[1] else "yes"
        elif match[3] in _EMPTY or not thing:
            values[verb] = "none"
            if verb == "holding":
                choices["nothing"] = "hands"
            else:
                literal = match[3] in ("none", "a none", "nothing") and not match[1]
                choices["nothing"] = match[3] if literal else "anything"
        elif match[1]:
            bags = [re.sub(r"^an? ", "", bag) for bag in re.split(r",? or |, ", thing)]
            if unknown := [bag for bag in bags if bag not in _BAGS]:
                values[verb] = "none" if "any" in unknown[0] else ""
            values |= dict.fromkeys((bag for bag in bags if bag in _BAGS), "no")
            if len(matches) == 1 and thing == match[3]:
                choices["action"] = "bare"
            if len(matches) == len(_BAGS):
                choices["nothing"] = "each"
        else:
            values[verb] = thing
            if verb == "carrying" and thing in _BAGS:
                values[thing] = "yes"
            if counted(thing) != match[3]:
                choices["action"] = "bare"
    if [match and match[2] for match in matches] == ["holding", "carrying"]:
        choices["action"] = f"reversed {choices.get('action', '')}".strip()
    return {name: value for name, value in values.items() if value}, choices
