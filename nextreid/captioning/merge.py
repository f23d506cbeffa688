"""The best of several answers: over models and samples first, then over modalities, with a trail that says why."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .schema import Answer, Answers, Schema, get_schema

Rule = Literal["confidence", "agreement"]

_UNSAID = 0.5  # the weight of a value given without a confidence: better than a doubt, worse than a certainty


@dataclass(frozen=True, slots=True)
class Vote:
    """What one voice said about one field.

    Attributes:
        voice: The model, the sample, or the modality.
        answer: What it said.
    """

    voice: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Decision:
    """How the answer to one field came about.

    Attributes:
        field: Name of the field.
        step: ``"models"`` or ``"modalities"``.
        votes: All voices with an answer, in the given order.
        winner: The voice whose value was kept; None where nobody knew.
        answer: What was kept.
        reason: Why, in words.
    """

    field: str
    step: Literal["models", "modalities"]
    votes: tuple[Vote, ...]
    winner: str | None
    answer: Answer
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as plain JSON data."""
        votes = [{"voice": v.voice, "value": v.answer.value, "confidence": v.answer.confidence} for v in self.votes]
        kept = {"value": self.answer.value, "confidence": self.answer.confidence, "source": self.answer.source}
        return {
            "field": self.field,
            "step": self.step,
            "votes": votes,
            "winner": self.winner,
            **kept,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Merged:
    """Merged answers of one image.

    Attributes:
        answers: One answer for each field that any voice answered.
        trail: One decision for each of them, and one more for each field that another modality complemented.
    """

    answers: Answers
    trail: tuple[Decision, ...]


def best_of(models: Mapping[str, Answers], *, rule: Rule = "confidence") -> Merged:
    """Keep, for each field, the best of what several models (or samples of one model) said about one image.

    Rule ``"confidence"`` is that of NEXT (Appendix C): the answer with the highest confidence, and that confidence.

    Rule ``"agreement"`` lets every voice count. With w_i the confidence of voice i (0.5 where it gave none), the
    value v with the largest support ``S(v) = Σ w_i over the voices that said v`` is kept; its confidence is
    ``S(v) / Σ w_i over all voices with a value × (1 − Π (1 − w_i) over the voices that said v)``: the share of the
    support, times the chance that not all of those who said it were wrong at once. One voice alone keeps its own
    confidence; two that agree on 0.6 reach 0.84; two that differ with 0.6 reach 0.3. Its source is ``"agreement"``
    where more than one voice had a value.

    Under either rule a value beats a missing one whatever the confidence, and the earlier voice wins a tie.

    Args:
        models: Answers by voice, such as ``{"qwen": {...}, "gpt": {...}}`` or ``{"qwen#0": ..., "qwen#1": ...}``.
        rule: See above.

    Returns:
        The merged answers with their trail, fields in the order in which they first occur.

    Raises:
        ValueError: If the rule is unknown.
    """
    if rule not in ("confidence", "agreement"):
        raise ValueError(f"rule must be 'confidence' or 'agreement', got {rule!r}")
    answers, trail = {}, []
    for name in _fields(models.values()):
        votes = tuple(Vote(voice, said[name]) for voice, said in models.items() if name in said)
        decision = _decide(name, "models", votes, rule)
        answers[name] = decision.answer
        trail.append(decision)
    return Merged(answers, tuple(trail))


def complement(
    modalities: Mapping[str, Answers | Merged],
    schema: str | Schema,
    *,
    fields: Sequence[str] | None = None,
    rule: Rule = "confidence",
) -> dict[str, Merged]:
    """Let the modalities of one sample complement each other (NEXT, Appendix C).

    For each of the named fields every modality that can show it gets the best answer of all modalities that can. Other
    fields stay as they are: what one modality shows of them is its own.

    Args:
        modalities: Answers by modality, such as ``{"rgb": ..., "nir": ..., "tir": ...}``, or results of `best_of`,
            whose trail is carried on.
        schema: ``"person"``, ``"vehicle"``, or a schema of your own.
        fields: Names of the fields to complement; None: those that the schema marks (what is carried, held or worn
            on the nose; licence plate, spoiler, roof rack). With ``"gender"`` in it the captions of one sample no
            longer contradict each other there.
        rule: As in `best_of`.

    Returns:
        Merged answers by modality.

    Raises:
        KeyError: If the schema has no such field.
        ValueError: If the schema or the rule is unknown.
    """
    schema = get_schema(schema)
    given = {m: said if isinstance(said, Merged) else Merged(said, ()) for m, said in modalities.items()}
    answers = {m: dict(merged.answers) for m, merged in given.items()}
    trails = {m: list(merged.trail) for m, merged in given.items()}
    for name in schema.merged if fields is None else fields:
        able = [m for m in given if schema[name].shown_in(m)]
        votes = tuple(Vote(m, given[m].answers[name]) for m in able if name in given[m].answers)
        if not votes:
            continue
        decision = _decide(name, "modalities", votes, rule)
        for modality in able:
            answers[modality][name] = decision.answer
            trails[modality].append(decision)
    return {m: Merged(answers[m], tuple(trails[m])) for m in given}


def _fields(voices: Iterable[Answers]) -> list[str]:
    return list(dict.fromkeys(name for said in voices for name in said))


def _decide(name: str, step: Literal["models", "modalities"], votes: tuple[Vote, ...], rule: Rule) -> Decision:
    known = [vote for vote in votes if vote.answer.value is not None]
    if not known:
        flags = tuple(dict.fromkeys(flag for vote in votes for flag in vote.answer.flags))
        return Decision(name, step, votes, None, Answer(None, 0.0, flags=flags), "nobody had a value")
    if len(known) == 1:
        return Decision(name, step, votes, known[0].voice, known[0].answer, "the only value")
    if rule == "agreement":
        return _agree(name, step, votes, known)
    best = max(known, key=_weight)
    return Decision(name, step, votes, best.voice, best.answer, f"highest confidence of {len(known)}")


def _agree(name: str, step: Literal["models", "modalities"], votes: tuple[Vote, ...], known: list[Vote]) -> Decision:
    support: dict[str, float] = {}
    doubt: dict[str, float] = {}
    for vote in known:
        value = str(vote.answer.value)
        support[value] = support.get(value, 0.0) + _weight(vote)
        doubt[value] = doubt.get(value, 1.0) * (1 - _weight(vote))
    chosen = max(support, key=lambda value: support[value])
    total = sum(support.values())
    confidence = support[chosen] / total * (1 - doubt[chosen]) if total else 0.0
    behind = [vote for vote in known if vote.answer.value == chosen]
    best = max(behind, key=_weight)
    answer = replace(best.answer, confidence=min(1.0, confidence), source="agreement")
    return Decision(name, step, votes, best.voice, answer, f"said by {len(behind)} of {len(known)}")


def _weight(vote: Vote) -> float:
    return _UNSAID if vote.answer.confidence is None else vote.answer.confidence
