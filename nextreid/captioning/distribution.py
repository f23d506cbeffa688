"""Probabilities of a field's values: as an answer, and pooled over annotators and modalities.

A distribution gives each value its probability. What is missing to 1 is the probability that the annotator does not
know; it is no value.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from .schema import Answer, Answers, Source

Distribution = Mapping[str, float]
_LEAST = 1e-3  # no annotator is surer than this that it is not a value: one alone cannot forbid it


def answer_of(probabilities: Distribution, source: Source = "probability", flags: tuple[str, ...] = ()) -> Answer:
    """Return the most probable value with its probability; unknown, with confidence 0, where that is likelier.

    Example:
        >>> answer_of({"yes": 0.7, "no": 0.2}).value
        'yes'
        >>> answer_of({"jacket": 0.3}).value is None
        True
    """
    value = max(probabilities, key=lambda name: probabilities[name], default=None)
    if value is None or probabilities[value] <= _unknown(probabilities):
        return Answer(None, 0.0, source, (*flags, "unknown"), probabilities)
    return Answer(value, probabilities[value], source, flags, probabilities)


def distribution_of(answer: Answer) -> Distribution:
    """Return an answer's probabilities; one without them is as sure of its value as it says, and knows no other."""
    if answer.probabilities or answer.value is None:
        return answer.probabilities
    return {answer.value: answer.weight}


def mean(given: Sequence[Distribution]) -> Distribution:
    """Return the arithmetic mean: the linear opinion pool, for annotators that look at the same evidence."""
    values = dict.fromkeys(value for one in given for value in one)
    return {value: sum(one.get(value, 0.0) for one in given) / len(given) for value in values}


def product(given: Sequence[Distribution], prior: Distribution) -> Distribution:
    """Return what independent evidence says together: ``p(v) ∝ Π p_m(v) / prior(v)^(M - 1)``.

    This is Bayes' rule for M annotators that see different things and share what they expect, which must not count M
    times. An annotator that does not know falls back to the prior; only if none knows is the result unknown.

    Args:
        given: Distributions of M annotators.
        prior: How frequent the values are, see `priors_of`; its values are those of the result.
    """
    scale = sum(prior.values())
    logs = dict.fromkeys(prior, 0.0)
    for value, share in prior.items():
        expected = max(share / scale, _LEAST)
        for one in given:
            logs[value] += math.log(max(one.get(value, 0.0) + _unknown(one) * expected, _LEAST))
        logs[value] -= (len(given) - 1) * math.log(expected)
    most = max(logs.values())
    weights = {value: math.exp(log - most) for value, log in logs.items()}
    known, total = 1 - math.prod(map(_unknown, given)), sum(weights.values())
    return {value: weight / total * known for value, weight in weights.items()}


def priors_of(answers: Iterable[Answers]) -> dict[str, Distribution]:
    """Return, for each field, the mean of all distributions about many images: what the annotators expect.

    Fields about which nothing is known are absent.
    """
    sums: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for fields in answers:
        for name, answer in fields.items():
            for value, probability in distribution_of(answer).items():
                sums[name][value] += probability
    totals = {name: sum(values.values()) for name, values in sums.items()}
    return {name: {v: p / totals[name] for v, p in values.items()} for name, values in sums.items() if totals[name]}


def _unknown(probabilities: Distribution) -> float:
    return max(0.0, 1 - sum(probabilities.values()))
