"""Caption to attributes: published captions are parsed back into the fields that they were made from."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..data.captions import split_sentences
from . import person_grammar, vehicle_grammar
from .person_grammar import Reading
from .phrasing import Phrasing
from .schema import Schema, get_schema
from .text import DOUBLED, plain_value

_SPLIT_WORDS = {
    "person": ("upper_clothing", "lower_clothing", "footwear"),
    "vehicle": ("color", "vehicle_type"),
}
"""Fields whose known words tell where one slot ends and the next begins."""


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


def parsable(schema: Schema) -> bool:
    """Whether captions of this schema can be parsed."""
    return schema.template in _SPLIT_WORDS


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
        known = ", ".join(_SPLIT_WORDS)
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


@functools.lru_cache(maxsize=1 << 16)
def _read(schema: Schema, text: str) -> tuple[str, Reading] | None:
    grammar = person_grammar if schema.template == "person" else vehicle_grammar
    return grammar.read(text, _known_words(schema))


@functools.cache
def _known_words(schema: Schema) -> Mapping[str, tuple[str, ...]]:
    known = {
        name: tuple(sorted({*schema[name].values, *schema[name].aliases}, key=lambda word: (-len(word), word)))
        for name in _SPLIT_WORDS[schema.template]
    }
    if schema.template == "person":
        color = schema["upper_clothing_color"]
        single = [word for word in color.aliases if " " not in word]
        known["styles"] = schema["footwear_style"].values
        known["colors"] = tuple(sorted({*single, *(word for value in color.values for word in value.split())}))
    return known
