"""What can be described in an image: fields, their closed vocabularies, and the modalities that can show them."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from typing import Any, Literal, get_args

from .text import is_refusal, plain_value

Source = Literal["verbal", "logprob", "probability", "vote", "agreement"]
Flag = Literal["alias", "unknown", "out-of-vocabulary"]

UNKNOWN_ANSWER = "unknown"
"""What a model is asked to answer instead of guessing. It is among the choices and never kept as a value."""

_SOURCES = get_args(Source)
_FREE_WORDS = 5
SHOWS = {
    "rgb": "a visible-light photograph. It shows colours; in the dark it shows little",
    "nir": "a near-infrared photograph, shown in grey. It shows shape and light, but no colours",
    "tir": "a thermal (long-wave infrared) image: brightness is heat. It shows outlines and warm parts, "
    "but neither colours, nor the light, nor the time of day",
}
"""What an image of a modality is and shows, in words."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One value with its confidence.

    Attributes:
        value: A value of the field's vocabulary; None: not known.
        confidence: In [0, 1]; None where none was given or it was not a number.
        source: Where the confidence comes from: the model's own words, its token probabilities, its probabilities for
            every value, repeated samples of it, or agreement between models or modalities.
        flags: Remarks of the parser, such as ``"alias"`` or ``"out-of-vocabulary"``.
        probabilities: Probability of each value where the annotator gave them, see `distribution`; what is missing to 1
            is that of "unknown".

    Raises:
        ValueError: If the confidence or a probability is out of range, the probabilities are more than 1 together, or
            the source is unknown.
    """

    value: str | None
    confidence: float | None = None
    source: Source = "verbal"
    flags: tuple[str, ...] = ()
    probabilities: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must lie in [0, 1] or be None, got {self.confidence!r}")
        given = self.probabilities.values()
        if given and not (all(0 <= p <= 1 for p in given) and sum(given) <= 1 + 1e-6):
            raise ValueError(f"probabilities must lie in [0, 1] and sum to at most 1, got {dict(self.probabilities)}")
        if self.source not in _SOURCES:
            raise ValueError(f"source must be one of {', '.join(_SOURCES)}, got {self.source!r}")

    @property
    def weight(self) -> float:
        """The confidence; 0.5 where none was given: better than a doubt, worse than a certainty."""
        return 0.5 if self.confidence is None else self.confidence

    def is_known(self, min_confidence: float = 0.0) -> bool:
        """Whether it may be reported: it has a value, and a confidence above 0 that is no less than a floor."""
        return self.value is not None and self.weight > 0 and self.weight >= min_confidence


Answers = Mapping[str, Answer]
"""The answers of one image, by field name."""


@dataclass(frozen=True, slots=True)
class Field:
    """One attribute.

    Attributes:
        name: Identifier, such as ``"upper_clothing"``.
        values: Closed vocabulary; empty: a few free words.
        modalities: The modalities that can show it; empty: every modality.
        aliases: Other words for a value, such as ``{"benz": "Mercedes-Benz"}``; matched without regard to case.
        merge: Whether the modalities complement each other in this field by default.
        rank: How well it tells identities apart: agreement of two captions of one identity less that of two identities,
            as measured on the published visible-light captions. 0 for what belongs to the moment (view, light).
        question: What the model should look for, in words.

    Raises:
        ValueError: If an entry is of another type, the name is no identifier, an alias stands for no value, or
            ``"unknown"`` is among the values.
    """

    name: str
    values: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)
    merge: bool = False
    rank: float = 0.0
    question: str = ""

    def __post_init__(self) -> None:
        for name in ("values", "modalities"):
            object.__setattr__(self, name, _texts(f"field {self.name!r}: {name}", getattr(self, name)))
        aliases = self.aliases if isinstance(self.aliases, Mapping) else None
        if aliases is None or not all(isinstance(text, str) for pair in aliases.items() for text in pair):
            raise ValueError(f"field {self.name!r}: aliases must be a table from texts to values")
        if not isinstance(self.rank, int | float) or not -1e9 < self.rank < 1e9 or not isinstance(self.merge, bool):
            raise ValueError(f"field {self.name!r}: rank must be a number and merge true or false")
        if not isinstance(self.question, str):
            raise ValueError(f"field {self.name!r}: question must be a text")
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(f"a field's name must be an identifier such as 'hair_length', got {self.name!r}")
        if UNKNOWN_ANSWER in self.values:
            raise ValueError(f"field {self.name!r}: leave {UNKNOWN_ANSWER!r} out; it is always allowed")
        if stray := sorted(set(self.aliases.values()) - set(self.values)) if self.values else []:
            raise ValueError(f"field {self.name!r}: aliases stand for {stray}, which are not among its values")

    def shown_in(self, modality: str) -> bool:
        """Whether an image of this modality can show the field."""
        return not self.modalities or modality in self.modalities


@dataclass(frozen=True)
class Schema:
    """The attributes of one type of object.

    Attributes:
        name: ``"person"``, ``"vehicle"`` or a custom name.
        version: Changes whenever a field or vocabulary does; stored with every answer.
        fields: In the order in which a model is asked for them.
        template: How a caption is composed: ``"person"``, ``"vehicle"``, or ``"plain"`` ("The <field> is <value>.").
        object: What the image shows, in words, such as ``"person"``.
        prompt: What a model is asked, the same for every modality; ``""``: `instructions` writes it from the fields.

    Raises:
        ValueError: If an entry is of another type, two fields share a name, or there is none.
    """

    name: str
    version: str
    fields: tuple[Field, ...]
    template: str = "plain"
    object: str = ""
    prompt: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(self.fields))
        for name in ("name", "version", "template", "object", "prompt"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"a schema's {name} must be a text, got {getattr(self, name)!r}")
        if not all(isinstance(entry, Field) for entry in self.fields):
            raise ValueError(f"the fields of schema {self.name!r} must be made by Field(...)")
        names = [f.name for f in self.fields]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"schema {self.name!r} needs fields of different names, got {names}")
        object.__setattr__(self, "object", self.object or self.name)

    def __hash__(self) -> int:
        return hash((self.name, self.version))  # the fields are many, and equality compares them

    def __getitem__(self, name: str) -> Field:
        """Return a field by name; raises KeyError that lists the fields."""
        if name not in self._by_name:
            raise KeyError(f"schema {self.name!r} has no field {name!r}; it has {', '.join(self._by_name)}")
        return self._by_name[name]

    def for_modality(self, modality: str) -> tuple[Field, ...]:
        """Return the fields that an image of this modality can show, such as ``"tir"``."""
        return tuple(f for f in self.fields if f.shown_in(modality))

    @functools.cached_property
    def _by_name(self) -> dict[str, Field]:
        return {f.name: f for f in self.fields}

    @functools.cached_property
    def _choices(self) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
        """Values and aliases of each field, by their normalised spelling."""
        return {
            f.name: ({_key(v): v for v in f.values}, {_key(alias): v for alias, v in f.aliases.items()})
            for f in self.fields
        }

    @property
    def merged(self) -> tuple[str, ...]:
        """Names of the fields that the modalities complement by default."""
        return tuple(f.name for f in self.fields if f.merge)

    def normalise(self, name: str, raw: Any) -> tuple[str | None, Flag | None]:
        """Bring a model's value into the vocabulary.

        Case, articles, underscores, hyphens, "(possibly …)" and all but the first of "a | b" do not matter; aliases
        are resolved.

        Args:
            name: The field.
            raw: Whatever the model gave: text, truth value, number or None.

        Returns:
            The value and None; the value and ``"alias"`` if it was translated; None and ``"unknown"`` if it is empty
            or means unknown; None and ``"out-of-vocabulary"`` if it is not among the choices.

        Raises:
            KeyError: If there is no such field.
        """
        entry, text = self[name], "" if raw is None else str(raw)
        known, others = self._choices[name]
        text = text.strip().strip(" .,;:\"'`")
        if text in entry.values:
            return text, None
        bare = text.partition(" (")[0]  # "not visible" is a value of some fields, and dropped by `plain_value`
        for key in (_key(text), _key(bare), _key(plain_value(text))):
            if key in known:
                return known[key], None
            if key in others:
                return others[key], "alias"
        text = plain_value(text)
        if not text or _key(text) in _NOTHING:
            return None, "unknown"
        if not entry.values and len(text.split()) <= _FREE_WORDS and not is_refusal(text):
            return text, None
        return None, "out-of-vocabulary"

    def answer(self, name: str, raw: Any, confidence: float | None = None, source: Source = "verbal") -> Answer:
        """Return a normalised `Answer`; one that is unknown or not among the choices has no value and confidence 0."""
        value, flag = self.normalise(name, raw)
        return Answer(value, confidence if value is not None else 0.0, source, (flag,) if flag else ())

    def instructions(self, modality: str) -> str:
        """Return the prompt for one image: `prompt` if there is one, else what it is, and what to look for."""
        if self.prompt:
            return self.prompt
        asked = self.for_modality(modality)
        lines = [
            f"This is {SHOWS.get(modality, f'an image of the kind {modality!r}')}. Look at the most prominent "
            f"{self.object} in it and fill in the fields below.",
            "Report what the image itself shows, nothing else. Never name or guess who someone is, and say nothing "
            "of origin, ethnicity, religion or health: only clothing, carried things and plain appearance count."
            if self.object == "person"
            else "Report what the image itself shows, nothing else. Do not read out or guess licence plate text.",
            f'Each field has a "value" from its list and a "confidence" from 0 (a guess) to 1 (plainly seen). Where '
            f'this kind of image cannot show it, or you cannot see it, answer "{UNKNOWN_ANSWER}" with confidence 0.',
        ]
        for entry in asked:
            choices = f"one of: {', '.join(entry.values)}" if entry.values else f"at most {_FREE_WORDS} words"
            lines.append(f"- {entry.name}: {entry.question or entry.name.replace('_', ' ')} ({choices})")
        lines.append(
            f"Answer with one JSON object with the keys {', '.join(f.name for f in asked)}, and nothing around it. "
            f'Each key holds {{"value": ..., "confidence": ...}}.'
        )
        return "\n".join(lines)

    def json_schema(self, modality: str) -> dict[str, Any]:
        """Return a JSON schema for servers that can constrain their output: enumerations and numbers only.

        Lengths, ranges and patterns are left out, because servers support them unevenly; `normalise` checks answers.
        """
        entries = {}
        for f in self.for_modality(modality):
            choices = {"enum": [*f.values, UNKNOWN_ANSWER]} if f.values else {}
            entries[f.name] = _strict({"value": {"type": "string", **choices}, "confidence": {"type": "number"}})
        return _strict(entries)

    def pydantic_model(self, modality: str) -> Any:
        """Return a pydantic model class of one image's answers (extra ``captions``).

        Each field has ``value`` (normalised, None if unknown or not among the choices) and ``confidence`` (in [0, 1] or
        None); fields that are missing are None, fields that the modality cannot show are rejected.

        Raises:
            ImportError: If pydantic is not installed.
        """
        try:
            import pydantic
        except ImportError as error:
            raise ImportError("typed answers need pydantic: pip install 'nextreid[captions]'") from error
        from typing import Annotated, Optional

        def typed(f: Field) -> Any:
            allowed: Any = Literal[f.values] if f.values else str
            tidy = pydantic.BeforeValidator(lambda raw: self.normalise(f.name, raw)[0])
            value = Annotated[Optional[allowed], tidy]  # noqa: UP045
            share = Annotated[float | None, pydantic.Field(ge=0, le=1)]
            name = f"{f.name.title().replace('_', '')}Answer"
            return pydantic.create_model(name, value=(value, None), confidence=(share, None))

        models: dict[str, Any] = {f.name: (Optional[typed(f)], None) for f in self.for_modality(modality)}  # noqa: UP045
        config = pydantic.ConfigDict(extra="forbid")
        return pydantic.create_model(f"{self.name.title()}{modality.title()}", __config__=config, **models)

    def to_dict(self) -> dict[str, Any]:
        """Return the schema as plain JSON data; `from_dict` reads it. A prompt is in it only where there is one."""
        table = json.loads(json.dumps(asdict(self)))  # tuples become lists
        return {name: value for name, value in table.items() if name != "prompt" or value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Schema":
        """Build a schema from `to_dict`'s form, such as the content of a JSON file.

        Raises:
            ValueError: If a key is missing or unknown, or an entry is of another type; names it.
        """
        try:
            fields = tuple(Field(**entry) for entry in data["fields"])
            return cls(**{**data, "fields": fields})
        except (TypeError, KeyError) as error:
            raise ValueError(
                "a schema has the keys name, version, template, object, prompt, fields (name, values, modalities, "
                f"aliases, merge, rank, question): {error}"
            ) from error

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change with anything in the schema."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@functools.cache
def _known() -> dict[str, Schema]:
    """Return the schemas by name: the built-in ones, and those that `register_schema` adds."""
    texts = (published_text(f"{name}.json") for name in ("person", "vehicle"))
    return {s.name: s for s in (Schema.from_dict(json.loads(text)) for text in texts)}


def published_text(name: str) -> str:
    """Return a file of the folder ``vocabulary``, such as ``"person_attributes.txt"``: the prompt of NEXT's Fig. 6."""
    return (resources.files(__package__) / "vocabulary" / name).read_text(encoding="utf-8").strip()


def list_schemas() -> list[str]:
    """Return the names that `get_schema` knows, sorted."""
    return sorted(_known())


def get_schema(name: str | Schema, prompt: Literal["nextreid", "paper"] = "nextreid") -> Schema:
    """Return a schema by name; a `Schema` is returned unchanged.

    Args:
        name: ``"person"``, ``"vehicle"``, or a name that was registered.
        prompt: How a model is asked. ``"nextreid"``: by the schema's own `Schema.instructions`. ``"paper"``: by the
            published instruction, to the letter (NEXT, Fig. 6 for a schema of the template ``"person"``, Fig. 7 for
            ``"vehicle"``); the answers are read into the same vocabulary.

    Raises:
        ValueError: If the name or the prompt is unknown, or the paper has no instruction for this schema.
    """
    if not isinstance(name, Schema):
        if name not in _known():
            known = ", ".join(list_schemas())
            raise ValueError(f"unknown schema {name!r}; known: {known}; or register_schema(Schema.from_dict(...))")
        name = _known()[name]
    if prompt == "nextreid":
        return name
    if prompt != "paper" or name.template not in ("person", "vehicle"):
        raise ValueError(
            f"prompt must be 'nextreid', or 'paper' for a schema of the template 'person' or 'vehicle'; got {prompt!r} "
            f"for schema {name.name!r} of the template {name.template!r}"
        )
    return replace(name, prompt=published_text(f"{name.template}_attributes.txt"))


def register_schema(schema: Schema) -> Schema:
    """Make a custom schema known by its name.

    Raises:
        ValueError: If another schema of this name exists.
    """
    if _known().setdefault(schema.name, schema) != schema:
        raise ValueError(f"there is another schema {schema.name!r}; give yours another name")
    return schema


_NOTHING = {"none", "no", "not", "nothing", "other", "other(s)", "false", ""}


def _key(text: str) -> str:
    """Return a value as it is looked up: lower case, no article, hyphens and underscores as spaces."""
    words = text.lower().replace("-", " ").replace("_", " ").split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def _texts(what: str, given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise ValueError(f"{what} must be a list of texts, got {given!r}")
    return tuple(given)


def _strict(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
