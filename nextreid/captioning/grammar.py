"""Attributes to caption and back by a fixed grammar, the same on every machine; published captions are parsed."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..data.captions import split_sentences
from . import person_grammar, vehicle_grammar
from .person_grammar import Reading
from .phrasing import Phrasing
from .schema import Answer, Schema, get_schema
from .text import DOUBLED, clip_token_counter, plain_value, sentence

_GRAMMARS: Mapping[str, Any] = {"person": person_grammar, "vehicle": vehicle_grammar}


@dataclass(frozen=True, slots=True)
class Parsed:
    """The content of a caption.

    Attributes:
        values: Text by field, as written; `Schema.normalise` brings it into the vocabulary.
        phrasing: The phrases it uses; ``compose(values, ..., phrasing=phrasing)`` writes it again.
        sentences: Name of each sentence's frame; ``""`` where none matches.
        leftover: The sentences that match no frame, or repeat one.
    """

    values: Mapping[str, str]
    phrasing: Phrasing = field(default_factory=Phrasing)
    sentences: tuple[str, ...] = ()
    leftover: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every sentence was parsed."""
        return not self.leftover


def compose(
    values: Mapping[str, str | Answer | None],
    schema: str | Schema,
    modality: str,
    *,
    phrasing: Phrasing | None = None,
    min_confidence: float = 0.0,
    compact: bool = False,
    max_tokens: int = 77,
    count_tokens: Callable[[str], int] | None = None,
) -> tuple[str, ...]:
    """Write the caption of one image.

    What is unknown, empty, of confidence 0, or cannot be seen in the modality is left out, together with the words
    around it, and so is a sentence without any value. Parentheses, unfilled slots and choices ("short | medium") never
    get into the text.

    Args:
        values: Value or answer by field.
        schema: ``"person"``, ``"vehicle"``, or a custom schema.
        modality: Such as ``"rgb"``; fields that it cannot show are left out.
        phrasing: Which phrases to use, such as `phrasing_of(key)`; None: the commonest ones.
        min_confidence: Confidence in [0, 1] below which an answer is left out; one without a confidence counts 0.5.
        compact: Whether to fit `max_tokens`: the fields that tell identities apart least are dropped first, and the
            sentences after the first are ordered by how well they tell identities apart.
        max_tokens: The text encoder's window, start and end tokens included; used with `compact` only.
        count_tokens: Tokens of a text, start and end included; None: CLIP's tokenizer.

    Returns:
        The sentences in order; joined by a space they are the caption.

    Raises:
        ValueError: If the schema is unknown, `min_confidence` is out of range, or `max_tokens` too small for a single
            field.
    """
    schema, phrasing = get_schema(schema), phrasing or Phrasing()
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"min_confidence must lie in [0, 1], got {min_confidence!r}")
    slots = {}
    for entry in schema.for_modality(modality):
        value = values.get(entry.name)
        if isinstance(value, Answer):
            value = value.value if value.is_known(min_confidence) else None
        text = value
        if text and phrasing.values == "clean" and text not in entry.values:
            text = plain_value(text)
        if text:
            slots[entry.name] = text
    if not compact:
        return tuple(_write(schema, slots, phrasing).values())
    return _fit(schema, slots, phrasing, max_tokens, count_tokens or clip_token_counter())


def parsable(schema: Schema) -> bool:
    """Whether captions of this schema can be parsed."""
    return schema.template in _GRAMMARS


def parse(caption: str, schema: str | Schema) -> Parsed:
    """Parse a caption of the fixed grammar; any text is accepted.

    Args:
        caption: The text, such as one of `read_captions`.
        schema: ``"person"`` or ``"vehicle"``, or a schema that uses one of their templates.

    Raises:
        ValueError: If the schema's template has no grammar.
    """
    schema = get_schema(schema)
    if not parsable(schema):
        known = ", ".join(_GRAMMARS)
        raise ValueError(f"template {schema.template!r} of schema {schema.name!r} cannot be parsed; these can: {known}")
    values: dict[str, str] = {}
    choices: dict[str, str] = {}
    names: list[str] = []
    leftover = []
    for text in split_sentences(caption):
        name, (found, chosen) = _read(schema, text) or ("", ({}, {}))
        if not name or name in names:
            leftover.append(text)
            names.append("")
        else:
            names.append(name)
            values |= found
            choices |= chosen
    defective = any(plain_value(value) != value for value in values.values()) or DOUBLED.search(caption)
    if defective or values.get("upper_clothing") == values.get("lower_clothing") == "dress":
        choices["values"] = "verbatim"
    return Parsed(values, Phrasing(**choices), tuple(names), tuple(leftover))


def _fit(
    schema: Schema, slots: dict[str, str], phrasing: Phrasing, max_tokens: int, count: Callable[[str], int]
) -> tuple[str, ...]:
    leaning = getattr(_GRAMMARS.get(schema.template), "LEANING", {})

    def strength_of(name: str) -> tuple[float, bool]:
        """Return what is lost with a field: also what depends on it, which goes first."""
        leans = [schema[other].rank for other, support in leaning.items() if support == name and other in slots]
        return max(schema[name].rank, *leans, 0.0), bool(leans)

    weakest_first = sorted(slots, key=strength_of)
    written = _write(schema, slots, phrasing)
    while written and count(" ".join(written.values())) > max_tokens:
        if len(slots) == 1:
            raise ValueError(f"max_tokens={max_tokens} is too small even for {' '.join(written.values())!r}")
        del slots[weakest_first.pop(0)]
        written = _write(schema, slots, phrasing)
    fields_of = _sentences(schema)
    first, *others = written.items() or [("", "")]
    others.sort(key=lambda pair: -max((schema[f].rank for f in fields_of[pair[0]] if f in slots), default=0.0))
    return tuple(text for _, text in (first, *others) if text)


def _sentences(schema: Schema) -> Mapping[str, tuple[str, ...]]:
    """Return the fields of each sentence of a template, by the sentence's name."""
    grammar = _GRAMMARS.get(schema.template)
    return grammar.SENTENCES if grammar else {entry.name: (entry.name,) for entry in schema.fields}


def _write(schema: Schema, slots: Mapping[str, str], phrasing: Phrasing) -> dict[str, str]:
    """Return the text of every sentence that has a value, by its name."""

    def plain(name: str, slots: Mapping[str, str], phrasing: Phrasing) -> str:
        return sentence(f"the {name.replace('_', ' ')} is {slots[name]}") if name in slots else ""

    write = getattr(_GRAMMARS.get(schema.template), "write", plain)
    written = {name: write(name, slots, phrasing) for name in _sentences(schema)}
    verbatim = phrasing.values == "verbatim"
    return {name: text if verbatim else DOUBLED.sub(r"\1", text) for name, text in written.items() if text}


@functools.lru_cache(maxsize=1 << 16)
def _read(schema: Schema, text: str) -> tuple[str, Reading] | None:
    return _GRAMMARS[schema.template].read(text, _known_words(schema))


@functools.cache
def _known_words(schema: Schema) -> Mapping[str, tuple[str, ...]]:
    known = {
        name: tuple(sorted({*schema[name].values, *schema[name].aliases}, key=lambda word: (-len(word), word)))
        for name in _GRAMMARS[schema.template].SPLIT_WORDS
    }
    if schema.template == "person":
        color = schema["upper_clothing_color"]
        single = [word for word in color.aliases if " " not in word]
        known["styles"] = schema["footwear_style"].values
        known["colors"] = tuple(sorted({*single, *(word for value in color.values for word in value.split())}))
    return known
