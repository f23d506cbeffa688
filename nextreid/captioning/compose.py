"""Attributes to caption: sentences by a fixed grammar, the same on every machine."""

from collections.abc import Callable, Mapping
from typing import Any

from . import person_grammar, vehicle_grammar
from .person_grammar import sentence
from .phrasing import Wording
from .schema import Answer, Schema, get_schema
from .text import DOUBLED, clip_token_counter, plain_value

_GRAMMARS: Mapping[str, Any] = {"person": person_grammar, "vehicle": vehicle_grammar}


def compose(
    values: Mapping[str, str | Answer | None],
    schema: str | Schema,
    modality: str,
    *,
    wording: Wording | None = None,
    compact: bool = False,
    max_tokens: int = 77,
    count_tokens: Callable[[str], int] | None = None,
) -> tuple[str, ...]:
    """Write the caption of one image.

    What is unknown, empty, or cannot be seen in the modality is left out, together with the words around it; a sentence
    with nothing left to tell is left out whole. Parentheses, unfilled slots and menus ("short | medium") never get
    into the text.

    Args:
        values: Value or answer by field.
        schema: ``"person"``, ``"vehicle"``, or a schema of your own.
        modality: Such as ``"rgb"``; fields that it cannot show are left out.
        wording: Which phrases to use, such as `wording_of(key)`; None: those that are commonest.
        compact: Whether to fit `max_tokens`: fields that tell identities apart least are dropped first, and behind the
            first sentence the others follow in the order of how well they tell identities apart.
        max_tokens: The text encoder's window, start and end tokens included; used with `compact` only.
        count_tokens: Tokens of a text, start and end included; None: CLIP's tokenizer.

    Returns:
        The sentences in order; joined by a space they are the caption.

    Raises:
        ValueError: If the schema is unknown, or `max_tokens` too small for a single field.
    """
    schema, wording = get_schema(schema), wording or Wording()
    slots = {}
    for field in schema.for_modality(modality):
        value = values.get(field.name)
        text = value.value if isinstance(value, Answer) else value
        if text and wording.values == "clean" and text not in field.values:
            text = plain_value(text)
        if text:
            slots[field.name] = text
    if not compact:
        return tuple(_write(schema, slots, wording).values())
    return _fit(schema, slots, wording, max_tokens, count_tokens or clip_token_counter())


def _fit(
    schema: Schema, slots: dict[str, str], wording: Wording, max_tokens: int, count: Callable[[str], int]
) -> tuple[str, ...]:
    leaning = _GRAMMARS[schema.template].LEANING if schema.template in _GRAMMARS else {}

    def strength_of(name: str) -> tuple[float, bool]:
        """What is lost with a field: also what leans on it, which goes first."""
        leans = [schema[other].rank for other, support in leaning.items() if support == name and other in slots]
        return max(schema[name].rank, *leans, 0.0), bool(leans)

    weakest_first = sorted(slots, key=strength_of)
    told = _write(schema, slots, wording)
    while told and count(" ".join(told.values())) > max_tokens:
        if len(slots) == 1:
            raise ValueError(f"max_tokens={max_tokens} holds not even {' '.join(told.values())!r}")
        del slots[weakest_first.pop(0)]
        told = _write(schema, slots, wording)
    first, *others = told.items() if told else [("", "")]
    strength = {
        name: max((schema[f].rank for f in fields if f in slots), default=0.0) for name, fields in _plan(schema)
    }
    ordered = sorted(others, key=lambda item: -strength[item[0]])
    return tuple(text for _, text in (first, *ordered) if text)


def _plan(schema: Schema) -> list[tuple[str, tuple[str, ...]]]:
    """Names of a template's sentences, each with its fields."""
    if schema.template in _GRAMMARS:
        return list(_GRAMMARS[schema.template].SENTENCES.items())
    return [(field.name, (field.name,)) for field in schema.fields]


def _write(schema: Schema, slots: Mapping[str, str], wording: Wording) -> dict[str, str]:
    """Text of every sentence that has something to tell, by its name."""
    grammar = _GRAMMARS.get(schema.template)
    told = {}
    for name, _ in _plan(schema):
        if grammar is not None:
            text = grammar.write(name, slots, wording)
        else:
            text = sentence(f"the {name.replace('_', ' ')} is {slots[name]}") if name in slots else ""
        if text:
            told[name] = text if wording.values == "verbatim" else DOUBLED.sub(r"\1", text)
    return told
