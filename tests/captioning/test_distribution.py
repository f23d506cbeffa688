"""Probabilities of values: the pools by their written equations, and the laws that they keep."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.captioning import Answer, best_of, complement
from nextreid.captioning.distribution import answer_of, distribution_of, mean, priors_of, product

VALUES = ("yes", "no", "perhaps")
WEIGHTS = st.tuples(*[st.floats(0.02, 1)] * len(VALUES))
FULL = WEIGHTS.map(lambda w: dict(zip(VALUES, (x / sum(w) for x in w), strict=True)))
PARTIAL = st.tuples(FULL, st.floats(0, 1)).map(lambda pair: {v: p * pair[1] for v, p in pair[0].items()})
LAW = settings(derandomize=True, deadline=None, max_examples=50)


@LAW
@given(st.lists(FULL, min_size=1, max_size=4), FULL)
def test_the_product_is_bayes_rule(given, prior):
    odds = {v: math.prod(one[v] for one in given) / prior[v] ** (len(given) - 1) for v in VALUES}
    assert product(given, prior) == pytest.approx({v: odds[v] / sum(odds.values()) for v in VALUES})


@LAW
@given(st.lists(PARTIAL, min_size=1, max_size=4), FULL)
def test_who_knows_nothing_changes_nothing(given, prior):
    pooled = product(given, prior)
    assert product([*given, {}], prior) == pytest.approx(pooled, abs=1e-9)
    assert product(given[::-1], prior) == pytest.approx(pooled)
    assert 1 - sum(pooled.values()) == pytest.approx(math.prod(1 - sum(one.values()) for one in given), abs=1e-9)
    assert sum(mean(given).values()) == pytest.approx(sum(sum(one.values()) for one in given) / len(given))


@LAW
@given(FULL, st.integers(2, 4))
def test_what_is_expected_does_not_count_twice(prior, count):
    assert product([prior] * count, prior) == pytest.approx(prior)


def test_one_annotator_alone_cannot_forbid_a_value():
    even = {"yes": 0.5, "no": 0.5}
    pooled = product([{"yes": 1.0, "no": 0.0}, {"yes": 0.0, "no": 1.0}], even)
    assert pooled == pytest.approx(even)


def test_an_answer_is_the_most_probable_value_unless_unknown_is():
    answer = answer_of({"red": 0.2, "blue": 0.5})
    assert (answer.value, answer.confidence, answer.source) == ("blue", 0.5, "probability")
    assert distribution_of(answer) == {"red": 0.2, "blue": 0.5}
    for unsure in ({"red": 0.3}, {"red": 0.5}, {}):
        answer = answer_of(unsure)
        assert (answer.value, answer.confidence, answer.flags) == (None, 0.0, ("unknown",))
        assert answer.probabilities == unsure
    assert distribution_of(Answer("red", 0.8)) == {"red": 0.8}
    assert distribution_of(Answer("red", None)) == {"red": 0.5} and distribution_of(Answer(None, 0.0)) == {}
    for wrong in ({"red": 1.1}, {"red": -0.1}, {"red": 0.6, "blue": 0.6}, {"red": math.nan}):
        with pytest.raises(ValueError, match="probabilities must lie in"):
            Answer("red", 0.5, probabilities=wrong)


def test_models_of_one_image_are_averaged_and_modalities_multiplied():
    models = {"a": {"backpack": answer_of({"yes": 0.9, "no": 0.1})}, "b": {"backpack": Answer("no", 0.6)}}
    rgb = best_of(models, rule="probability")
    kept = rgb.answers["backpack"]
    assert (kept.value, kept.source) == ("yes", "probability") and kept.confidence == pytest.approx(0.45)
    assert kept.probabilities == pytest.approx({"yes": 0.45, "no": 0.35})
    assert (rgb.trail[0].winner, rgb.trail[0].reason) == ("a", "mean of 2 distributions")
    images = {
        "rgb": {"backpack": answer_of({"yes": 0.4, "no": 0.6})},
        "tir": {"backpack": answer_of({"yes": 0.8, "no": 0.2})},
    }
    rare = {"backpack": {"yes": 0.2, "no": 0.8}}
    merged = complement(images, "person", rule="probability", priors=rare)["rgb"].answers["backpack"]
    # 0.4 · 0.8 / 0.2 against 0.6 · 0.2 / 0.8
    assert (merged.value, merged.confidence) == ("yes", pytest.approx(1.6 / (1.6 + 0.15)))
    plain = complement(images, "person", rule="probability")["rgb"].answers["backpack"]
    assert plain.probabilities == pytest.approx({"yes": 0.6, "no": 0.4})
    surely_not = {
        "rgb": {"backpack": answer_of({"yes": 0.05, "no": 0.95})},
        "tir": {"backpack": answer_of({"yes": 0.55, "no": 0.45})},
    }
    assert complement(surely_not, "person", rule="probability")["rgb"].answers["backpack"].value == "no"
    yielding = complement(surely_not, "person", rule="probability", absence="yields")
    assert yielding["rgb"].answers["backpack"].value == "yes"


def test_what_one_annotator_only_suspects_still_counts():
    suspect = answer_of({"yes": 0.4})
    alone = best_of({"a": {"backpack": suspect}}, rule="probability")
    assert alone.answers["backpack"] == suspect and alone.trail[0].winner is None
    both = best_of({"a": {"backpack": suspect}, "b": {"backpack": answer_of({"yes": 0.9})}}, rule="probability")
    assert both.answers["backpack"].value == "yes" and both.answers["backpack"].confidence == pytest.approx(0.65)
    prior = {"backpack": {"no": 1.0}}  # it lacks a value: the mean has all of them
    images = {"rgb": {"backpack": answer_of({"yes": 0.9})}, "tir": {"backpack": answer_of({"yes": 0.7, "no": 0.3})}}
    merged = complement(images, "person", rule="probability", priors=prior)
    assert merged["rgb"].trail[-1].reason == "mean of 2 distributions"


def test_priors_are_the_mean_of_all_that_was_said():
    said = [{"backpack": answer_of({"yes": 0.8})}, {"backpack": Answer("no", 0.2)}, {"glasses": Answer(None, 0.0)}, {}]
    assert priors_of(said) == {"backpack": pytest.approx({"yes": 0.8, "no": 0.2})}
