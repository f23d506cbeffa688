"""Replies in every form that models give, read against what was meant."""

import json
import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.speed.caption_server import REPLIES, spoiled
from nextreid.captioning import Answer, Field, Schema, get_schema
from nextreid.captioning.answers import parse_reply, read_confidence
from nextreid.captioning.text import is_refusal

SCHEMA = get_schema("person")
SAID = {f.name: (f.values[0], 0.4 + 0.02 * i) for i, f in enumerate(SCHEMA.for_modality("rgb"))}
FULL = {name: Answer(value, confidence) for name, (value, confidence) in SAID.items()}


def read(text, modality="rgb", **more):
    return parse_reply(text, SCHEMA, modality, **more)


def values(reading):
    return {name: answer.value for name, answer in reading.answers.items()}


def test_a_good_reply_is_read_without_remark():
    reading = read(json.dumps({name: {"value": v, "confidence": round(c, 3)} for name, (v, c) in SAID.items()}))
    assert (reading.status, reading.flags, reading.missing) == ("ok", (), 0)
    assert values(reading) == {name: v for name, (v, _) in SAID.items()}
    assert all(math.isclose(reading.answers[n].confidence, c, abs_tol=1e-3) for n, (_, c) in SAID.items())
    assert not any(answer.flags for answer in reading.answers.values())


WHOLE = {
    "fenced": "fenced", "prose": "prose", "thinking": "thinking", "open-thinking": "thinking",
    "trailing-comma": "trailing-comma", "python": "python", "list-root": "list", "wrapped": "wrapped", "case": None,
    "percent": None, "percent-number": None, "word": None, "no-confidence": None, "out-of-range": None,
    "lists": None, "bare": None,
}  # fmt: skip
EACH = {
    "percent": "percent", "percent-number": "percent", "word": "word", "no-confidence": "no-confidence",
    "out-of-range": "clamped", "lists": "list", "bare": "bare",
}  # fmt: skip


@pytest.mark.parametrize("form", WHOLE)
def test_forms_are_forgiven_and_flagged(form):
    message = spoiled(form, "m", SAID)["choices"][0]
    reading = read(message["message"]["content"], finish=message["finish_reason"])
    assert reading.status == "ok" and not reading.needs_repair
    assert values(reading) == {name: v for name, (v, _) in SAID.items()}
    assert reading.flags == ((WHOLE[form],) if WHOLE[form] else ())
    for name, answer in reading.answers.items():
        assert (EACH[form] in answer.flags) if form in EACH else not answer.flags
        known = {"word": None, "no-confidence": None, "bare": None, "out-of-range": 0.0}
        expected = known.get(form, SAID[name][1])
        assert answer.confidence == (expected if expected is None else pytest.approx(expected, abs=0.01))


@pytest.mark.parametrize(
    ("form", "status", "flag"),
    [
        ("empty", "unusable", "empty"), ("garbage", "unusable", "no-json"), ("refusal", "refused", None),
        ("refusal-text", "refused", None), ("truncated", "ok", "truncated"), ("nulls", "ok", None),
        ("out-of-choices", "ok", None),
    ],
)  # fmt: skip
def test_what_cannot_be_mended_is_recorded(form, status, flag):
    choice = spoiled(form, "m", SAID)["choices"][0]
    message = choice["message"]
    reading = read(message["content"], finish=choice["finish_reason"], refusal=message["refusal"])
    assert reading.status == status and (flag is None or flag in reading.flags)
    assert reading.needs_repair == (status == "unusable")
    first = next(iter(SAID))
    if form == "truncated":  # whole entries are kept as they were, none is made up
        assert 10 <= len(reading.answers) < len(SAID) and reading.flags == ("truncated",)
        assert all(values(reading)[name] == SAID[name][0] for name in reading.answers)
    elif status == "ok":
        flag = "unknown" if form == "nulls" else "out-of-vocabulary"
        assert reading.answers[first].value is None and reading.answers[first].confidence == 0
        assert flag in reading.answers[first].flags and len(reading.answers) == len(SAID)


def test_every_malformation_of_the_server_is_covered():
    assert set(WHOLE) | {"empty", "garbage", "refusal", "refusal-text", "truncated", "nulls", "out-of-choices"} == set(
        REPLIES
    ) - {"filtered"}
    assert read(None, finish="content_filter").status == "refused"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"attribute": "Age", "value": "adult", "confidence": 0.5}, {"name": "gender", "answer": "man"}]',
         {"age": "adult", "gender": "male"}),
        ('{"person": {"attributes": {"age": {"Value": "adult", "Score": 1}}}}', {"age": "adult"}),
        ('"{\\"age\\": {\\"value\\": \\"adult\\"}}"', {"age": "adult"}),
        ('{"age": ["adult", 0.7], "backpack": true, "glasses": {"value": false, "confidence": 0.9}}',
         {"age": "adult", "backpack": "yes", "glasses": "no"}),
        ('{"age": {"value": {"it": 1}, "confidence": 0.7}}', {"age": None}),
        ('{"value": "e.g."} {"age": {"value": "adult"}} {"age": {"value": "child"}}', {"age": "adult"}),
        ('{"age": {"value": "adult", // a comment\n "confidence": 0.5}}', {"age": "adult"}),
        ('{"age": {"value": "adult", "confidence": 0.5}, "gen', {"age": "adult"}),
        ("{'age': {'value': 'adult', 'confidence': None}}", {"age": "adult"}),
    ],
)  # fmt: skip
def test_odd_shapes(text, expected):
    assert values(read(text)) == expected


def test_a_thought_is_no_answer_and_a_modality_has_its_own_fields():
    assert read('<think>{"age": {"value": "child"}} ...').status == "unusable"
    reading = read('{"upper_clothing_color": {"value": "red"}, "age": {"value": "adult"}}', "tir")
    assert values(reading) == {"age": "adult"} and "extra-fields" in reading.flags
    assert read('{"age": {"value": "adult"}, "gender": {"va', finish="length").needs_repair


@pytest.mark.parametrize(
    ("raw", "value", "flag"),
    [
        (0.5, 0.5, None), (1, 1.0, None), (0, 0.0, None), ("0.25", 0.25, None), ("0,25", 0.25, None), (85,
        0.85, "percent"),
        ("95%", 0.95, "percent"), ("95 %", 0.95, "percent"), ("1%", 0.01, "percent"), (1.2, 1.0, "clamped"),
        (-0.1, 0.0, "clamped"), (900, 1.0, "clamped"), (10**400, 1.0, "clamped"), ("high", None, "word"),
        ("", None, "no-confidence"),
        (None, None, "no-confidence"), (True, None, "no-confidence"), ([], None, "no-confidence"), ("nan",
        None, "no-confidence"),
        (math.inf, None, "no-confidence"),
    ],
)  # fmt: skip
def test_confidences(raw, value, flag):
    read_value, flags = read_confidence(raw)
    assert read_value == (value if value is None else pytest.approx(value)) and flags == ((flag,) if flag else ())


PYTHON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.complex_numbers()
    | st.binary(max_size=4)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.sampled_from(["age", "value", "confidence", "name", "x"]) | st.integers(), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=60) | st.text("{}[]\",:'\\ age01", max_size=80) | PYTHON.map(repr), st.booleans())
def test_nothing_a_model_writes_is_an_error(text, reasoned):
    reading = read(text, reasoned=reasoned)
    assert reading.status in ("ok", "refused", "unusable") and (reading.status == "ok") == bool(reading.answers)


@settings(derandomize=True, deadline=None)
@given(PYTHON, PYTHON)
def test_an_answer_of_any_type_is_one_answer(value, confidence):
    for form in ({"age": {"value": value, "confidence": confidence}}, {"age": value}, {"age": (value, confidence)}):
        for answer in read(repr(form)).answers.values():
            assert answer.confidence is None or 0 <= answer.confidence <= 1


HOSTILE = ["{", "[", '{"a":', '"', '\\"', "/*", "//", "[]", "{[", ",[]", "<think>", "</think>", "`", '{"a":[', ", "]


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.parametrize("around", ["%s", "[%s", '{"x":%s', "{%s}"])
def test_hostile_text_costs_time_in_proportion(piece, around):
    """Counted in steps of the interpreter, which no other process changes: eight times the text, not 64 times."""

    def steps(length):
        count = 0

        def trace(frame, event, argument):
            nonlocal count
            count += 1
            return trace

        text = around % (piece * (length // len(piece)))
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            assert read(text).status == "unusable"
        finally:
            sys.settrace(before)
        return count

    assert steps(48_000) <= 12 * steps(6_000) + 5_000


@pytest.mark.parametrize("depth", [20, 900, 3000, 100_000])
def test_deep_answers_are_no_answers(depth):
    for opened, closed in (('{"a":', "}"), ("[", "]")):
        assert read(opened * depth + '{"age": "adult"}' + closed * depth).status in ("unusable", "ok")
    assert read("[" * depth + "]" * depth).status == "unusable"


def test_an_answer_among_thoughts_is_a_draft_and_the_whole_of_them_is_one():
    said = '{"age": {"value": "adult", "confidence": 0.9}}'
    assert values(read(said, reasoned=True)) == {"age": "adult"} and "thinking" in read(said, reasoned=True).flags
    assert read(f"Perhaps {said}? Or rather", reasoned=True).status == "unusable"
    assert read(said, reasoned=True, finish="length").status == "unusable"


@pytest.mark.parametrize(
    "text",
    [
        "I\u2019m sorry, but I can\u2019t help with that.", "I can`t identify people.", "Sorry, that is not possible.",
        "I apologize, but this is against our guidelines.", "I\u02bcm unable to assist.", "Unfortunately I cannot.",
        "I must decline.", "I won\u2018t describe this person.", "\u5bf9\u4e0d\u8d77\uff0c\u65e0\u6cd5\u63cf\u8ff0",
    ],
)  # fmt: skip
def test_refusals_in_any_quotes(text):
    assert is_refusal(text) and read(text).status == "refused"
    assert not is_refusal("An adult male seen from the back. He is not carrying anything; the face cannot be seen.")
    free = Schema("free", "1", (Field("note"),))
    assert free.normalise("note", "I can\u2019t help") == (None, "out-of-vocabulary")
