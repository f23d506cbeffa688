"""Caption text: read the published files, split into sentences, tell empty words from values, count CLIP's tokens."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

# "(" does not open a sentence: in the published captions it carries on the one before
_BOUNDARY = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.) (?=[A-Z0-9\[\"*-])")

UNKNOWN = re.compile(
    r"(?<![a-z])(?:un(?:known|knowable|clear|determined|determinable|identifiable|identified|specified|certain|sure|"
    r"defined|distinguishable|discernible|recognizable|available|mentioned)|undiscernable|indiscernible|"
    r"indeterminate|indeterminable|indistinguishable|indistinct|n/a|not (?:specified|determined|identifiable|available|"
    r"applicable|clear|sure|known|discernible|determinable|mentioned|provided))(?![a-z])",
    re.IGNORECASE,
)
"""Words that stand where a value should be. They tell nothing about the image, so they never enter a caption."""

DOUBLED = re.compile(r"\b(\w+(?: \w+)*) \1\b", re.IGNORECASE)
"""Words said twice in a row, as in "casual casual shoes"."""

_HIDDEN = re.compile(r"\b(?:none|not|nothing)[ _]visible\b|^(?:null|nan|nil|\?+|-+)$", re.IGNORECASE)


def read_captions(path: str | Path) -> dict[str, str]:
    """Read one published caption file: a JSON list of ``{"item": file name, "description": caption}``.

    Args:
        path: The file, as NEXT (``lsh-ahu/NEXT-ReID``) and IDEA (``924973292/IDEA``) publish it.

    Returns:
        Caption by file name, in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such a list, or names an item twice; names the file and the entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no caption file {path}")
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f'{path} holds a {type(entries).__name__}, expected a list of {{"item", "description"}}')
    captions: dict[str, str] = {}
    for number, entry in enumerate(entries):
        item, text = (entry.get("item"), entry.get("description")) if isinstance(entry, dict) else (None, None)
        if not isinstance(item, str) or not isinstance(text, str):
            shown = json.dumps(entry, ensure_ascii=False)[:120]
            raise ValueError(f'{path}: entry {number} needs strings "item" and "description", it is {shown}')
        if item in captions:
            raise ValueError(f"{path}: entry {number} names {item!r} a second time; keep one caption per image")
        captions[item] = text
    return captions


def split_sentences(caption: str) -> tuple[str, ...]:
    """Split a caption into sentences; nothing is lost.

    A sentence ends at ``.``, ``!`` or ``?`` followed by white space and a capital, digit, ``[``, ``"`` or list mark
    (``*``, ``-``), but not after "e.g." or "i.e.". White space of any kind and length counts as one space.

    Args:
        caption: Any text.

    Returns:
        The sentences, with ``" ".join(split_sentences(c)) == " ".join(c.split())``; ``()`` for blank text.
    """
    text = " ".join(caption.split())
    return tuple(_BOUNDARY.split(text)) if text else ()


@functools.lru_cache(maxsize=1 << 14)
def plain_value(raw: str) -> str:
    """Strip an answer to the words that say something.

    Parentheses and unfilled slots (``"[age]"``) go, the first of ``"short | medium"`` stays, white space is single.

    Args:
        raw: A value as a model or a published caption gives it, such as ``"dark (possibly black)"``.

    Returns:
        The words, such as ``"dark"``; ``""`` if nothing but "unknown", "none visible" and the like was said.
    """
    if UNKNOWN.search(re.sub(r"\(.*", "", raw)):
        return ""
    text = re.sub(r"\([^)]*\)?|\[[^\]]*\]?", " ", raw).split("|")[0].replace("_", " ")
    text = " ".join(text.split()).strip(" .,;:\"'`")
    return "" if _HIDDEN.search(text) else text


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase.

    Args:
        phrase: Such as ``"adult male"``.

    Returns:
        Such as ``"an adult male"``; by the sound: ``"a uniform"``, ``"an SUV"``.
    """
    vowel = phrase[:1].lower() in set("aeiou") and not re.match(r"(?:uni(?!n)|use|u-|eu|one\b)", phrase, re.IGNORECASE)
    spelt = re.match(r"(?:SUV|MPV|MG|FAW)\b", phrase)
    return f"{'an' if vowel or spelt else 'a'} {phrase}"


@functools.cache
def clip_token_counter() -> Callable[[str], int]:
    """Return a function that counts a text's tokens as CLIP does, start and end included (open_clip's tokenizer)."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()

    def count(text: str) -> int:
        return 2 + len(tokenizer.encode(text))

    return count
