"""Words of captions: values cleaned, articles and full stops put, tokens counted as CLIP does."""

import functools
import re
from collections.abc import Callable, Mapping

from ..data.captions import UNKNOWN

DOUBLED = re.compile(r"\b(\w+(?: \w+)*) \1\b", re.IGNORECASE)
"""Words repeated at once, as in "casual casual shoes"."""

AN = re.compile(r"(?!uni(?!n)|use|u-|eu|one\b)[aeiou]|(?-i:SUV|MPV|MG|FAW)\b", re.IGNORECASE)
"""How a phrase begins that takes "an"; by the sound: "a uniform", "an SUV"."""

_HIDDEN = re.compile(r"\b(?:none|not|nothing)[ _]visible\b|^(?:null|nan|nil|\?+|-+)$", re.IGNORECASE)


_STRAIGHT = dict.fromkeys(map(ord, "\u2018\u2019\u201b\u02bc\u00b4\uff07`"), "'")
_REFUSAL = re.compile(
    r"\bI(?:'m| am)?,? (?:really |very |so )?(?:sorry|unable|not able|not comfortable|can(?:no|')t|can not|won't"
    r"|apologi[sz]e|(?:must|have to) (?:decline|refuse))"
    r"|^\W*(?:sorry|(?:my )?apologies|unfortunately)\b|\bI (?:do not|don't) feel comfortable"
    r"|\b(?:cannot|can't|unable to) (?:assist|help|comply|provide|identify|describe)"
    r"|\bas an AI\b|\bagainst (?:my|our|the) (?:policy|policies|guidelines)"
    r"|抱歉|对不起|(?:无法|不能)(?:协助|提供|识别|描述|帮助)",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Tell whether a model declines to answer, in straight or typographic quotes; only the beginning counts."""
    return bool(_REFUSAL.search(text[:1000].translate(_STRAIGHT)))


@functools.lru_cache(maxsize=1 << 14)
def plain_value(raw: str) -> str:
    """Reduce an answer to the words that carry a value.

    Parentheses and unfilled slots (``"[age]"``) go, the first of ``"short | medium"`` stays, white space is single.

    Args:
        raw: A value as a model or a published caption gives it, such as ``"dark (possibly black)"``.

    Returns:
        The words, such as ``"dark"``; ``""`` for "unknown", "none visible" and the like.
    """
    if UNKNOWN.search(re.sub(r"\(.*", "", raw)):
        return ""
    text = re.sub(r"\([^)]*\)?|\[[^\]]*\]?", " ", raw).split("|")[0].replace("_", " ")
    text = " ".join(text.split()).strip(" .,;:\"'`")
    return "" if _HIDDEN.search(text) else text


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase, such as ``"an adult male"``, ``"a uniform"``, ``"an SUV"``."""
    return f"{'an' if AN.match(phrase) else 'a'} {phrase}"


def counted(noun: str) -> str:
    """Put an article before a singular; plurals ("black trousers", "papers") stay bare."""
    if not noun or (noun.endswith("s") and not noun.endswith("ss")) or noun == "luggage":
        return noun
    return with_article(noun)


def words(slots: Mapping[str, str], *names: str) -> str:
    """Join the slots that are filled."""
    return " ".join(slots[name] for name in names if slots.get(name))


def sentence(text: str) -> str:
    """Capital and full stop; ``""`` stays."""
    return f"{text[0].upper()}{text[1:]}." if text else ""


@functools.cache
def clip_token_counter() -> Callable[[str], int]:
    """Return a function that counts a text's tokens as CLIP does, start and end included (open_clip's tokenizer)."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    return lambda text: 2 + len(tokenizer.encode(text))
