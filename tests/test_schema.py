"""What a value may be is found out once, in one message, whatever somebody gives."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid._schema import (
    choice,
    defaults_of,
    distinct,
    either,
    flag,
    kinds_of,
    listed,
    mapping,
    number,
    optional,
    plain_texts,
    plain_words,
    table,
    text,
    whole,
    word,
)

names = distinct(listed(word, 1, 3, "names"))
KINDS = (
    whole(0, 9), number(-1, 1), flag, word, text(5), choice("a", "b"), optional(whole(1, 2)), names, plain_words,
    plain_texts, mapping(flag), either(word, whole(1, 1)), table({"a": flag, "b": number(0, 1)}),
)  # fmt: skip
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=2)
    | st.sampled_from(["../x", "a/b", "http://h/x", "C:\\x", "rgb", np.float32(0.5), np.int64(1), np.True_, object()])
)  # fmt: skip
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(), inner)
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values, st.sampled_from(range(len(KINDS))))
def test_whatever_is_given_becomes_plain_json_or_one_named_error(value, index):
    try:
        plain = KINDS[index]("the argument", value)
    except ValueError as error:
        assert str(error).startswith("the argument") and len(str(error)) < 600
        return
    json.dumps(plain, allow_nan=False)
    assert KINDS[index]("the argument", json.loads(json.dumps(plain))) == plain


@settings(max_examples=60, deadline=None, derandomize=True)
@given(values)
def test_plain_words_hold_no_path_and_no_address(value):
    try:
        plain = plain_words("x", value)
    except ValueError:
        return

    def strings(value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
        return [value] if isinstance(value, str) else [s for item in inner for s in strings(item)]

    assert not [s for s in strings(plain) if set(s) & set("/\\: ~")]


def test_numpy_becomes_plain():
    plain = plain_words("x", {"a": np.float64(0.5), "b": np.arange(2), "c": np.bool_(True), "d": (np.int8(3),)})
    assert plain == {"a": 0.5, "b": (0, 1), "c": True, "d": (3,)}
    assert [type(v) for v in plain.values()] == [float, tuple, bool, tuple] and type(plain["d"][0]) is int


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (whole(1, 8), 9, "depth must be a whole number of 1 to 8; got 9"),
        (whole(1, 8), True, "got True"),
        (whole(1, 8), 2.0, r"got 2\.0"),
        (number(0, 1), math.nan, "a number of 0 to 1; got nan"),
        (number(0, 1), 10**99, "got 1000"),
        (word, "a/b", "a name of letters.*got 'a/b'"),
        (names, ("a", "a"), "must be names"),
        (names, 7, "must be names; got 7"),
        (table({"width": flag}, "setting"), {"widht": True}, "unknown setting 'widht'.*mean 'width'"),
        (table({"width": flag}, required=["width"]), {}, "has no setting width"),
        (mapping(flag), {"a": 1}, r"depth\.a must be True or False"),
        (plain_texts, {"a": [{"b": object()}]}, r"depth\.a\.b must be plain"),
    ],
)
def test_messages_name_the_value_and_what_it_must_be(kind, value, message):
    with pytest.raises(ValueError, match=f"depth.*{message}" if not message.startswith("depth") else message):
        kind("depth", value)


def test_a_string_is_one_name():
    assert names("x", "rgb") == ("rgb",)


def test_the_signature_of_a_function_says_its_kinds():
    def build(a: int, b: float = 0.5, c: str = "x", d: bool | None = None, e: dict[str, object] | None = None):
        pass

    kinds = kinds_of(build, skip=["a"])
    assert list(kinds) == ["b", "c", "d", "e"] and defaults_of(build, skip=["d", "e"]) == {"b": 0.5, "c": "x"}
    assert kinds["d"]("d", None) is None and kinds["e"]("e", {"k": 1}) == {"k": 1}
    for name, value in {"b": "1", "c": 1, "d": 1, "e": {"k": "a/b"}}.items():
        with pytest.raises(ValueError, match=f"^{name}"):
            kinds[name](name, value)
