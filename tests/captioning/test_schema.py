import functools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.captioning import Answer, Field, Schema, get_schema, list_schemas, register_schema
from nextreid.captioning import schema as module

PERSON, VEHICLE = get_schema("person"), get_schema("vehicle")
MODALITIES = ("rgb", "nir", "tir")
VALUES = [(s, f, v) for s in (PERSON, VEHICLE) for f in s.fields for v in f.values]
BOX = {
    "name": "parcel",
    "version": "3",
    "object": "parcel",
    "fields": [
        {"name": "size", "values": ["small", "large"], "aliases": {"big": "large"}, "rank": 0.5},
        {"name": "label_color", "modalities": ["rgb"]},
    ],
}


def test_fields_and_what_each_modality_shows() -> None:
    assert (len(PERSON.fields), len(VEHICLE.fields)) == (20, 27)
    hidden = {
        (s.name, m): {f.name for f in s.fields} - {f.name for f in s.for_modality(m)}
        for s in (PERSON, VEHICLE)
        for m in MODALITIES
    }
    colors, light = {"upper_clothing_color", "lower_clothing_color"}, {"capture_time", "illumination"}
    assert hidden == {
        ("person", "rgb"): set(),
        ("person", "nir"): colors,
        ("person", "tir"): colors | light,
        ("vehicle", "rgb"): set(),
        ("vehicle", "nir"): {"color"},
        ("vehicle", "tir"): {"color"} | light,
    }
    assert set(PERSON.merged) == {"carrying", "holding", "handbag", "backpack", "suitcase", "glasses"}
    assert set(VEHICLE.merged) == {"license_plate", "spoiler", "roof_rack"}


def test_vocabularies_are_closed_and_their_words_lead_to_one_value() -> None:
    for schema in (PERSON, VEHICLE):
        for field in schema.fields:
            assert len(set(field.values)) == len(field.values) >= 2 and field.question
            for alias, value in field.aliases.items():
                found = schema.normalise(field.name, alias)
                assert found[0] == value and found[1] in ("alias", None), (field.name, alias)


@pytest.mark.parametrize("change", [str, str.upper, str.title, "a {}.".format, " {} (likely)".format])
def test_case_articles_and_remarks_do_not_matter(change) -> None:
    for schema, field, value in VALUES:
        assert schema.normalise(field.name, change(value)) == (value, None), (field.name, change(value))


@pytest.mark.parametrize(
    ("schema", "field", "raw", "expected"),
    [
        (VEHICLE, "branding", "Benz", ("Mercedes-Benz", "alias")),
        (VEHICLE, "branding", "mercedes benz", ("Mercedes-Benz", None)),
        (VEHICLE, "branding", "citroen", ("Citroën", "alias")),
        (VEHICLE, "branding", "Batmobile", (None, "out-of-vocabulary")),
        (VEHICLE, "branding", "not visible", (None, "unknown")),
        (VEHICLE, "license_plate", "not visible", ("not visible", None)),
        (VEHICLE, "exhaust_type", "none visible", ("hidden", "alias")),
        (PERSON, "glasses", True, ("yes", "alias")),
        (PERSON, "glasses", "No", ("no", None)),
        (PERSON, "backpack", "carrying backpack", ("yes", "alias")),
        (PERSON, "upper_clothing", "T_Shirt", ("t-shirt", None)),
        (PERSON, "upper_clothing_color", "grey", ("gray", "alias")),
        (PERSON, "upper_clothing_color", "dark (possibly black)", ("dark", None)),
        (PERSON, "hair_length", "Short | medium", ("short", None)),
        (PERSON, "holding", "none", ("none", None)),
        (PERSON, "view", "none", (None, "unknown")),
        (PERSON, "view", "unknown", (None, "unknown")),
        (PERSON, "view", "child | adult", (None, "out-of-vocabulary")),
        (PERSON, "age", None, (None, "unknown")),
        (PERSON, "age", "", (None, "unknown")),
        (PERSON, "age", 35, (None, "out-of-vocabulary")),
        (PERSON, "age", {"value": "adult"}, (None, "out-of-vocabulary")),
    ],
)
def test_normalise(schema, field, raw, expected) -> None:
    assert schema.normalise(field, raw) == expected
    kept = schema.answer(field, raw, 0.7)
    assert kept.value == expected[0] and kept.confidence == (0.7 if expected[0] else 0.0)
    assert kept.flags == ((expected[1],) if expected[1] else ())


def test_free_text_is_short() -> None:
    schema = Schema.from_dict(BOX)
    assert schema.normalise("label_color", "a red and white stripe") == ("a red and white stripe", None)
    assert schema.normalise("label_color", "red with a long story about it") == (None, "out-of-vocabulary")
    assert schema.normalise("label_color", "unknown") == (None, "unknown")


def test_unknown_fields_are_named() -> None:
    with pytest.raises(KeyError, match="no field 'wings'; it has age, gender"):
        PERSON.normalise("wings", "two")


@pytest.mark.parametrize("schema", [PERSON, VEHICLE], ids=lambda s: s.name)
@pytest.mark.parametrize("modality", MODALITIES)
def test_json_schema_keeps_to_enumerations_and_numbers(schema, modality) -> None:
    data = schema.json_schema(modality)
    assert list(data["properties"]) == data["required"] == [f.name for f in schema.for_modality(modality)]
    assert set(_keys(data)) == {"type", "properties", "required", "additionalProperties", "enum"}
    for field in schema.for_modality(modality):
        inner = data["properties"][field.name]
        assert inner["properties"]["value"]["enum"] == [*field.values, "unknown"]
        assert inner["properties"]["confidence"] == {"type": "number"}
        assert inner["required"] == ["value", "confidence"] and inner["additionalProperties"] is False
    json.dumps(data)


def _keys(node):
    """Keywords of a JSON schema, without the names of properties."""
    for key, inner in node.items():
        yield key
        if key == "properties":
            for value in inner.values():
                yield from _keys(value)


@pytest.mark.parametrize("schema", [PERSON, VEHICLE], ids=lambda s: s.name)
@pytest.mark.parametrize("modality", MODALITIES)
def test_instructions_ask_for_what_can_be_seen_and_no_more(schema, modality) -> None:
    text = schema.instructions(modality)
    asked = {line[2:].split(":")[0]: line for line in text.splitlines() if line.startswith("- ")}
    assert list(asked) == [f.name for f in schema.for_modality(modality)]
    for field in schema.for_modality(modality):
        assert ", ".join(field.values) in asked[field.name]
    assert {"rgb": "visible-light", "nir": "near-infrared", "tir": "thermal"}[modality] in text
    assert ("no colours" in text or "neither colours" in text) == (modality != "rgb")
    if schema is PERSON:
        assert "Never name or guess who" in text and "ethnicity" in text and "health" in text
    assert '"confidence"' in text and '"unknown"' in text


def test_a_schema_of_ones_own(monkeypatch) -> None:
    monkeypatch.setattr(module, "_known", functools.cache(module._known.__wrapped__))
    box = register_schema(Schema.from_dict(BOX))
    assert "parcel" in list_schemas() and get_schema("parcel") is box is register_schema(box)
    assert Schema.from_dict(json.loads(json.dumps(box.to_dict()))) == box
    assert [f.name for f in box.for_modality("nir")] == ["size"]
    assert "sonar" in box.instructions("sonar")
    with pytest.raises(ValueError, match="another schema 'parcel'"):
        register_schema(Schema.from_dict({**BOX, "version": "4"}))
    with pytest.raises(ValueError, match="another schema 'person'"):
        register_schema(Schema.from_dict({**BOX, "name": "person"}))
    with pytest.raises(ValueError, match=r"unknown schema 'boat'; known: parcel, person, vehicle"):
        get_schema("boat")


def test_digest_changes_with_anything() -> None:
    data = PERSON.to_dict()
    seen = {PERSON.digest(), VEHICLE.digest()}
    for path, value in (
        (("version",), "9"),
        (("fields", 0, "values", 0), "baby"),
        (("fields", 3, "rank"), 0.9),
        (("fields", 0, "question"), "?"),
    ):
        other = json.loads(json.dumps(data))
        node = other
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value
        other["fields"][0]["aliases"] = {}
        seen.add(Schema.from_dict(other).digest())
    assert len(seen) == 6 and all(len(d) == 16 for d in seen)
    assert Schema.from_dict(data).digest() == PERSON.digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": []}, "needs fields"),
        ({"fields": [{"name": "a"}, {"name": "a"}]}, "different names"),
        ({"fields": [{"name": "two words"}]}, "identifier"),
        ({"fields": [{"name": "a", "values": ["x"], "aliases": {"y": "z"}}]}, r"\['z'\]"),
        ({"fields": [{"name": "a", "values": ["unknown"]}]}, "'unknown' out"),
        ({"fields": [{"name": "a", "colour": 1}]}, "colour"),
        ({"shape": 1}, "shape"),
    ],
)
def test_bad_schemas_are_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        Schema.from_dict({**BOX, **change})
    with pytest.raises(ValueError, match="fields"):
        Schema.from_dict({"name": "a", "version": "1"})


def test_typed_answers() -> None:
    pydantic = pytest.importorskip("pydantic")
    model = PERSON.pydantic_model("tir")
    assert list(model.model_fields) == [f.name for f in PERSON.for_modality("tir")]
    found = model.model_validate({"gender": {"value": "Man", "confidence": 0.4}, "view": {"value": "upside down"}})
    assert (found.gender.value, found.gender.confidence) == ("male", 0.4)
    assert found.view.value is None and found.view.confidence is None and found.age is None
    for bad in ({"gender": {"value": "male", "confidence": 1.5}}, {"upper_clothing_color": {"value": "red"}}):
        with pytest.raises(pydantic.ValidationError):
            model.model_validate(bad)


def test_answers_are_checked() -> None:
    assert Answer("adult", 1.0, "vote").flags == ()
    for confidence in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="confidence"):
            Answer("adult", confidence)
    with pytest.raises(ValueError, match="source"):
        Answer("adult", 0.5, "gut")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="identifier"):
        Field("")


OPTIONS = re.compile(r'"(\w+)": {"value": "(?:e\.g\., )?(.*?)(?:, etc)?", "confidence": 0\.0}')


@pytest.mark.parametrize(("name", "fields", "start"), [("person", 20, "person"), ("vehicle", 27, "vehicle")])
def test_the_published_prompts_are_selectable_and_their_options_understood(name, fields, start):
    own, paper = get_schema(name), get_schema(name, prompt="paper")
    prompt = paper.instructions("rgb")
    assert prompt == paper.instructions("tir") != own.instructions("rgb")
    assert prompt.startswith("You are a visual analysis assistant specialized in processing images. Analyze the")
    assert f"identify the most obvious {start} using" in prompt
    assert prompt.endswith("}\n\nPlease provide the analysis in valid JSON only.") and "\\" not in prompt
    asked = dict(OPTIONS.findall(prompt))
    assert list(asked) == [f.name for f in own.fields] and len(asked) == fields
    for field, options in asked.items():
        for option in re.split(r" \| |, ", options):
            value, flag = own.normalise(field, option)
            assert (value is None) == (option == "unclear") and flag != "out-of-vocabulary", (field, option)
    assert paper.digest() != own.digest() and Schema.from_dict(paper.to_dict()) == paper
    assert "prompt" not in own.to_dict(), "answers that were stored before prompts could be chosen stay valid"


def test_unknown_prompts_are_named():
    with pytest.raises(ValueError, match="prompt must be 'nextreid', or 'paper'"):
        get_schema("person", prompt="letter")
    dog = Schema("dog", "1", (Field("breed"),))
    with pytest.raises(ValueError, match="schema 'dog' of the template 'plain'"):
        get_schema(dog, prompt="paper")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.just(10**400) | st.floats() | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "a"]), inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from(["name", "values", "modalities", "aliases", "merge", "rank", "question", "other"])


@settings(derandomize=True, deadline=None)
@given(st.sampled_from(["name", "version", "fields", "template", "object", "prompt", "more"]), JSON, KEYS, JSON)
def test_any_json_is_a_schema_or_one_named_error(key, value, field_key, field_value):
    good = {"name": "dog", "version": "1", "fields": [{"name": "breed", "values": ["pug"]}]}
    field = good["fields"][0] | {field_key: field_value}
    for table in (good | {key: value}, good | {"fields": [field]}, value):
        try:
            schema = Schema.from_dict(table)
        except ValueError:
            continue
        assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
        assert all(
            isinstance(text, str) and text for f in schema.fields for text in (f.name, schema.instructions("rgb"))
        )


@pytest.mark.parametrize(("answer", "known"), [
    (Answer("x", 0.0), False), (Answer("x", 1e-9), True), (Answer("x"), True), (Answer(None, 0.9), False),
])  # fmt: skip
def test_what_may_be_reported(answer, known):
    assert answer.is_known() is known and not answer.is_known(0.95)
    assert Answer("x").is_known(0.5) and not Answer("x").is_known(0.51)
