import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.captioning import Answer, Merged, best_of, complement

ANSWERS = st.builds(
    Answer, st.sampled_from([None, "x", "y", "z"]), st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])
)
VOICES = st.lists(ANSWERS, min_size=1, max_size=5)


def weight(answer: Answer) -> float:
    return 0.5 if answer.confidence is None else answer.confidence


@given(VOICES)
def test_highest_confidence_wins(answers: list[Answer]) -> None:
    merged = best_of({f"m{i}": {"f": answer} for i, answer in enumerate(answers)})
    kept, known = merged.answers["f"], [a for a in answers if a.value is not None]
    if not known:
        assert kept.value is None and kept.confidence == 0 and merged.trail[0].winner is None
    else:
        best = sorted(known, key=lambda a: -weight(a))[0]  # sorted is stable: the earlier of two equals
        assert kept == best and merged.trail[0].winner == f"m{next(i for i, a in enumerate(answers) if a is best)}"


@given(VOICES)
def test_agreement_is_the_written_formula(answers: list[Answer]) -> None:
    kept = best_of({f"m{i}": {"f": answer} for i, answer in enumerate(answers)}, rule="agreement").answers["f"]
    known = [a for a in answers if a.value is not None]
    if len(known) < 2:
        assert kept == (known[0] if known else Answer(None, 0.0))
        return
    support = {v: sum(weight(a) for a in known if a.value == v) for v in {a.value for a in known}}
    assert support[kept.value] == max(support.values()) and kept.source == "agreement"
    total = sum(support.values())
    wrong = math.prod(1 - weight(a) for a in known if a.value == kept.value)
    assert kept.confidence == pytest.approx(support[kept.value] / total * (1 - wrong) if total else 0.0)


def test_agreement_examples_of_the_docstring() -> None:
    def confidence(*answers: tuple[str, float]) -> float:
        annotators = {str(i): {"f": Answer(v, c)} for i, (v, c) in enumerate(answers)}
        return best_of(annotators, rule="agreement").answers["f"].confidence

    assert confidence(("x", 0.6)) == 0.6
    assert confidence(("x", 0.6), ("x", 0.6)) == pytest.approx(0.84)
    assert confidence(("x", 0.6), ("y", 0.6)) == pytest.approx(0.3)
    two = {str(i): {"f": Answer(v, c)} for i, (v, c) in enumerate([("x", 0.9), ("y", 0.5), ("y", 0.5)])}
    assert best_of(two).answers["f"].value == "x" and best_of(two, rule="agreement").answers["f"].value == "y"


def test_fields_that_only_one_model_answers_are_kept() -> None:
    merged = best_of({"a": {"view": Answer("side", 0.2)}, "b": {"age": Answer("adult", 0.1)}})
    assert {name: a.value for name, a in merged.answers.items()} == {"view": "side", "age": "adult"}
    assert best_of({}).answers == {} and best_of({"a": {}}).trail == ()


IMAGES = {
    "rgb": {"backpack": Answer("no", 0.3), "gender": Answer("male", 0.3), "upper_clothing_color": Answer("red", 0.9)},
    "nir": {"gender": Answer("female", 0.8)},
    "tir": {"backpack": Answer("yes", 0.9), "gender": Answer("female", 0.9)},
}


def test_modalities_complement_the_fields_of_the_schema_only() -> None:
    merged = complement(IMAGES, "person")
    assert {m: r.answers["backpack"].value for m, r in merged.items()} == dict.fromkeys(IMAGES, "yes")
    assert [r.answers["gender"].value for r in merged.values()] == ["male", "female", "female"]
    assert "holding" not in merged["rgb"].answers
    assert "backpack" not in IMAGES["nir"], "the input is left as it was"


def test_the_list_of_fields_is_a_choice_and_colours_stay_where_they_can_be_seen() -> None:
    merged = complement(IMAGES, "person", fields=["gender", "upper_clothing_color"], rule="agreement")
    assert {r.answers["gender"].value for r in merged.values()} == {"female"}
    assert merged["rgb"].answers["backpack"].value == "no"
    assert "upper_clothing_color" not in merged["nir"].answers and "upper_clothing_color" in merged["rgb"].answers
    with pytest.raises(KeyError, match="wings"):
        complement(IMAGES, "person", fields=["wings"])


SEES = st.builds(Answer, st.sampled_from([None, "none", "phone", "cup"]), st.none() | st.sampled_from([0.0, 0.2, 0.9]))


@settings(derandomize=True, deadline=None)
@given(
    st.lists(SEES, min_size=1, max_size=3), st.sampled_from([0.0, 0.5]), st.sampled_from(["confidence", "agreement"])
)
def test_absence_yields_to_whatever_is_seen(answers: list[Answer], floor: float, rule: str) -> None:
    modalities = {m: {"holding": a} for m, a in zip(("rgb", "nir", "tir"), answers, strict=False)}
    kept = complement(modalities, "person", rule=rule, min_confidence=floor)["rgb"].answers["holding"]
    seen = [a for a in answers if a.value in ("phone", "cup") and weight(a) > 0 and weight(a) >= floor]
    if seen:
        assert kept.value in {a.value for a in seen}
        if rule == "confidence":
            assert weight(kept) == max(map(weight, seen))
    else:
        plain = complement(modalities, "person", rule=rule, absence="counts")["rgb"].answers["holding"]
        assert kept == plain


def test_a_confident_none_of_one_modality_beats_no_sight_of_another() -> None:
    images = {"rgb": {"backpack": Answer("no", 0.95)}, "tir": {"backpack": Answer("yes", 0.3)}}
    merged = complement(images, "person")["rgb"]
    assert (
        merged.answers["backpack"] == Answer("yes", 0.3) and merged.trail[0].reason == "the only value; absence yields"
    )
    assert complement(images, "person", absence="counts")["rgb"].answers["backpack"].value == "no"
    assert complement(images, "person", min_confidence=0.4)["rgb"].answers["backpack"].value == "no"
    plate = {"rgb": {"license_plate": Answer("not visible", 1.0)}, "nir": {"license_plate": Answer("visible", 0.1)}}
    assert complement(plate, "vehicle")["rgb"].answers["license_plate"].value == "visible"
    with pytest.raises(ValueError, match="absence must be 'yields' or 'counts'"):
        complement(images, "person", absence="wins")  # type: ignore[arg-type]


def test_the_trail_records_every_vote_and_the_reason() -> None:
    models = {"big": {"backpack": Answer("no", 0.4)}, "small": {"backpack": Answer("yes", 0.2)}}
    rgb = best_of(models)
    merged = complement({"rgb": rgb, "tir": Merged({"backpack": Answer("yes", 0.9)}, ())}, "person")["rgb"]
    first, second = (decision.to_dict() for decision in merged.trail)
    assert first == {
        "field": "backpack",
        "step": "models",
        "votes": [
            {"annotator": "big", "value": "no", "confidence": 0.4},
            {"annotator": "small", "value": "yes", "confidence": 0.2},
        ],
        "winner": "big",
        "value": "no",
        "confidence": 0.4,
        "source": "verbal",
        "reason": "highest confidence of 2",
    }
    assert second["step"] == "modalities" and second["winner"] == "tir" and second["value"] == "yes"
    json.dumps([first, second])


def test_unknown_rules_are_named() -> None:
    with pytest.raises(ValueError, match="'loudest'"):
        best_of({}, rule="loudest")  # type: ignore[arg-type]
