"""Caption to attributes: published captions are read back into the fields that they were made from."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from . import person_grammar, vehicle_grammar
from .person_grammar import Reading
from .phrasing import Wording
from .schema import Schema, get_schema
from .text import DOUBLED, plain_value, split_sentences

_SPLIT_WORDS = {
    "person": ("upper_clothing", "lower_clothing", "footwear"),
    "vehicle": ("color", "vehicle_type"),
}
"""Fields whose known words tell where one slot ends and the next begins."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a caption says.

    Attributes:
        values: Text by field, as written; `Schema.normalise` brings it into the vocabulary.
        wording: The phrases it uses; ``compose(values, ..., wording=wording)`` writes it again.
        sentences: Name of each sentence's frame; ``""`` where none fits.
        leftover: The sentences that fit no frame, or repeat one.
    """

    values: Mapping[str, str]
    wording: Wording = field(default_factory=Wording)
    sentences: tuple[str, ...] = ()
    leftover: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every sentence was read."""
        return not self.leftover


def readable(schema: Schema) -> bool:
    """Whether captions of this schema can be read back."""
    return schema.template in _SPLIT_WORDS


def parse(caption: str, schema: str | Schema) -> Parsed:
    """Read a caption of the fixed grammar.

    Args:
        caption: The text, such as one of `read_captions`.
        schema: ``"person"`` or ``"vehicle"``, or a schema that uses one of their templates.

    Returns:
        Values, wording and what was left over; any text at all can be given.

    Raises:
        ValueError: If the schema's template has no grammar to read.
    """
    schema = get_schema(schema)
    if not readable(schema):
        raise ValueError(
            f"template {schema.template!r} of schema {schema.name!r} cannot be read back; "
            f"these can: {', '.join(_SPLIT_WORDS)}"
        )
    values: dict[str, str] = {}
    choices: dict[str, str] = {}
    names, leftover = [], []
    for text in split_sentences(caption):
        found = _read(schema, text)
        if found is None or found[0] in names:
            leftover.append(text)
            names.append("")
            continue
        name, (told, chosen) = found
        names.append(name)
        values |= told
        choices |= chosen
    damaged = any(plain_value(value) != value for value in values.values())
    if damaged or _dressed_twice(values) or DOUBLED.search(caption):
        choices["values"] = "verbatim"
    return Parsed(values, Wording(**choices), tuple(names), tuple(leftover))


def _dressed_twice(values: Mapping[str, str]) -> bool:
    return values.get("upper_clothing") == values.get("lower_clothing") == "dress"


@functools.lru_cache(maxsize=1 << 16)
def _read(schema: Schema, text: str) -> tuple[str, Reading] | None:
    if schema.template == "person":
        return person_grammar.read(text, _known_words(schema))
    return vehicle_grammar.read(text, _known_words(schema))


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
