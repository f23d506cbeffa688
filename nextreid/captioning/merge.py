"""The best of several answers: over models and samples first, then over modalities, with a trail of the decisions."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from .distribution import Distribution, answer_of, distribution_of, mean, product
from .schema import Answer, Answers, Schema, get_schema

Rule = Literal["confidence", "agreement", "probability"]
Absence = Literal["yields", "counts"]
Step = Literal["models", "modalities"]

_ABSENT = frozenset({"no", "none", "not present", "not visible"})  # answers that something was not seen


class Vote(NamedTuple):
    """What one annotator (a model, a sample of one, or a modality) answered for one field."""

    annotator: str
    answer: Answer

    @property
    def weight(self) -> float:
        """See `Answer.weight`."""
        return self.answer.weight


@dataclass(frozen=True, slots=True)
class Decision:
    """How the answer to one field came about.

    Attributes:
        field: Name of the field.
        step: ``"models"`` or ``"modalities"``.
        votes: All annotators with an answer, in the given order.
        winner: The annotator whose value was kept; None if nobody had a value.
        answer: The answer that was kept.
        reason: Why, in words.
    """

    field: str
    step: Step
    votes: tuple[Vote, ...]
    winner: str | None
    answer: Answer
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as plain JSON data."""
        return {
            "field": self.field,
            "step": self.step,
            "votes": [{"annotator": v, "value": a.value, "confidence": a.confidence} for v, a in self.votes],
            "winner": self.winner,
            "value": self.answer.value,
            "confidence": self.answer.confidence,
            "source": self.answer.source,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Merged:
    """Merged answers of one image.

    Attributes:
        answers: One answer for each field that any annotator answered.
        trail: One decision for each of them, and one more for each field that another modality complemented.
    """

    answers: Answers
    trail: tuple[Decision, ...]


def best_of(models: Mapping[str, Answers], *, rule: Rule = "confidence") -> Merged:
    """Keep, for each field, the best of what several models (or samples of one model) answered about one image.

    Rule ``"confidence"`` is that of NEXT (Appendix C): the answer with the highest confidence, and that confidence.

    Rule ``"agreement"`` lets every annotator count. With w_i the confidence of annotator i (0.5 where it gave none),
    the value v with the largest support ``S(v) = Σ w_i over those who gave v`` is kept; its confidence is
    ``S(v) / Σ w_i over all with a value × (1 − Π (1 − w_i) over those who gave v)``: the share of the support, times
    the chance that not all of those who gave it were wrong at once. A single annotator keeps its confidence; two that
    agree on 0.6 reach 0.84; two that differ with 0.6 reach 0.3. The source is ``"agreement"`` where more than one
    annotator had a value.

    Rule ``"probability"`` takes the mean of the annotators' distributions (`distribution.mean`); the most probable
    value is kept, and its confidence is that probability. An annotator without a distribution is as sure of its value
    as it says. Models that look at one image err together, so their probabilities are not multiplied.

    Under the first two rules a value beats a missing one whatever the confidence. The earlier annotator wins a tie.

    Args:
        models: Answers by annotator, such as ``{"qwen": {...}, "gpt": {...}}`` or ``{"qwen#0": ..., "qwen#1": ...}``.
        rule: See above.

    Returns:
        The merged answers with their trail, fields in the order in which they first occur.

    Raises:
        ValueError: If the rule is unknown.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be 'confidence', 'agreement' or 'probability', got {rule!r}")
    names = dict.fromkeys(name for answers in models.values() for name in answers)
    trail = tuple(
        _decide(name, "models", [Vote(m, answers[name]) for m, answers in models.items() if name in answers], rule)
        for name in names
    )
    return Merged({decision.field: decision.answer for decision in trail}, trail)


def complement(
    modalities: Mapping[str, Answers | Merged],
    schema: str | Schema,
    *,
    fields: Sequence[str] | None = None,
    rule: Rule = "confidence",
    absence: Absence | None = None,
    min_confidence: float = 0.0,
    priors: Mapping[str, Distribution] | None = None,
) -> dict[str, Merged]:
    """Let the modalities of one sample complement each other (NEXT, Appendix C).

    For each of the named fields every modality that can show it gets the best answer of all modalities that can. Other
    fields keep the answer of their own modality.

    What is carried or held is fine detail, and the paper's point is that it is reported as "not carrying" where the
    light hides it. So an answer that something is absent ("no", "none", "not present", "not visible") yields to one of
    another modality that sees it, however confident the absence is; among those that see it, `rule` decides.

    Rule ``"probability"`` multiplies the distributions of the modalities, which fail on different images, and divides
    by what is expected anyway (`distribution.product`). Absence is a value with a probability there: where a modality
    cannot see, it is less sure, and the others outweigh it.

    Args:
        modalities: Answers by modality, such as ``{"rgb": ..., "nir": ..., "tir": ...}``, or results of `best_of`,
            whose trail is carried on.
        schema: ``"person"``, ``"vehicle"``, or a custom schema.
        fields: Names of the fields to complement; None: those that the schema marks (what is carried, held or worn
            on the nose; licence plate, spoiler, roof rack). With ``"gender"`` in it the captions of one sample no
            longer contradict each other there.
        rule: As in `best_of`.
        absence: ``"yields"``, as described; ``"counts"``: it is an answer as any other. None: ``"counts"`` under the
            rule ``"probability"``, else ``"yields"``.
        min_confidence: Confidence below which an answer that sees something does not make the others yield; one of
            confidence 0 never does.
        priors: How frequent the values of each field are, for the rule ``"probability"``: see `distribution.priors_of`.
            A field without one is merged by the mean.

    Returns:
        Merged answers by modality.

    Raises:
        KeyError: If the schema has no such field.
        ValueError: If the schema, `rule` or `absence` is unknown.
    """
    schema = get_schema(schema)
    if absence is None:
        absence = "counts" if rule == "probability" else "yields"
    if absence not in get_args(Absence):
        raise ValueError(f"absence must be 'yields' or 'counts', got {absence!r}")
    given = {m: one if isinstance(one, Merged) else Merged(one, ()) for m, one in modalities.items()}
    merged = dict(given)
    for name in schema.merged if fields is None else fields:
        able = [m for m in given if schema[name].shown_in(m)]
        votes = [Vote(m, given[m].answers[name]) for m in able if name in given[m].answers]
        if votes:
            seen = [v for v in votes if v.answer.is_known(min_confidence) and v.answer.value not in _ABSENT]
            prior = (priors or {}).get(name)
            decision = _decide(name, "modalities", votes, rule, seen if absence == "yields" else (), prior)
            for m in able:
                merged[m] = Merged({**merged[m].answers, name: decision.answer}, (*merged[m].trail, decision))
    return merged


def _decide(
    name: str,
    step: Step,
    votes: Sequence[Vote],
    rule: Rule,
    seen: Sequence[Vote] = (),
    prior: Distribution | None = None,
) -> Decision:
    """Decide between the votes that have a value; only between those in `seen`, if there are some."""
    by_probability = rule == "probability"  # where unknown is the likeliest, the rest still says something
    known = list(seen) or [
        vote for vote in votes if vote.answer.value is not None or (by_probability and vote.answer.probabilities)
    ]
    if not known:
        flags = tuple(dict.fromkeys(flag for vote in votes for flag in vote.answer.flags))
        return Decision(name, step, tuple(votes), None, Answer(None, 0.0, flags=flags), "nobody had a value")
    winner: str | None
    if len(known) == 1:
        answer, reason = known[0].answer, "the only value"
        winner = known[0].annotator if answer.value is not None else None
    elif by_probability:
        winner, answer, reason = _pool(known, prior)
    elif rule == "confidence":
        winner, answer = max(known, key=lambda vote: vote.weight)
        reason = f"highest confidence of {len(known)}"
    else:
        winner, answer, reason = _agree(known)
    if seen and any(vote.answer.value in _ABSENT for vote in votes):
        reason += "; absence yields"
    return Decision(name, step, tuple(votes), winner, answer, reason)


def _agree(known: Sequence[Vote]) -> tuple[str, Answer, str]:
    support: defaultdict[str | None, float] = defaultdict(float)
    doubt: defaultdict[str | None, float] = defaultdict(lambda: 1.0)
    for vote in known:
        support[vote.answer.value] += vote.weight
        doubt[vote.answer.value] *= 1 - vote.weight
    chosen = max(support, key=lambda value: support[value])
    total = sum(support.values())
    confidence = support[chosen] / total * (1 - doubt[chosen]) if total else 0.0
    behind = [vote for vote in known if vote.answer.value == chosen]
    winner, best = max(behind, key=lambda vote: vote.weight)
    answer = replace(best, confidence=min(1.0, confidence), source="agreement", probabilities={})
    return winner, answer, f"given by {len(behind)} of {len(known)}"


def _pool(known: Sequence[Vote], prior: Distribution | None) -> tuple[str | None, Answer, str]:
    given = [distribution_of(vote.answer) for vote in known]
    values = dict.fromkeys(value for one in given for value in one)
    # the product has the values of the prior; one of them that it lacks is new to it
    multiplied = prior is not None and values.keys() <= prior.keys()
    answer = answer_of(product(given, prior) if prior is not None and multiplied else mean(given))
    winner = None
    if answer.value is not None:
        best = max(range(len(known)), key=lambda n: given[n].get(str(answer.value), 0.0))
        winner = known[best].annotator
    return winner, answer, f"{'product' if multiplied else 'mean'} of {len(known)} distributions"
